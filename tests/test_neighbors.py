import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from raypot import neighbors
from raypot.neighbors import complete_cell, find_edges
from raypot.structures import Block, Structure


def displaced(atoms: Atoms, seed: int = 1) -> Atoms:
    atoms.rattle(0.05, seed=seed)
    return atoms


def triclinic() -> Atoms:
    cell = [[4.1, 0.0, 0.0], [1.7, 3.9, 0.0], [-1.2, 0.8, 5.3]]
    scaled = np.random.default_rng(5).random((6, 3))
    return Atoms("Si6", scaled_positions=scaled, cell=cell, pbc=True)


def wire() -> Atoms:
    return Atoms("C4", [[0, 0, 0], [1.2, 0.3, 0], [2.5, -0.2, 0.1], [3.7, 0.1, 0]], cell=[5, 0, 0],
                 pbc=[True, False, False])  # fmt: skip


def left_handed() -> Atoms:
    return Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]], cell=np.diag([5.6, 5.6, -5.6]), pbc=True)


def outside() -> Atoms:
    atoms = displaced(bulk("Cu", cubic=True))
    atoms.positions[0] += [11.3, -7.9, 22.0]
    atoms.positions[2] -= [3.7, 40.1, 0.0]
    return atoms


def slab(**settings) -> Atoms:
    return displaced(fcc111("Pt", (2, 2, 3), **settings))


def large_molecule() -> Atoms:
    positions = np.random.default_rng(2).random((90, 3)) * 12.0
    return Atoms("H90", positions)


CASES = {
    "ethanol": displaced(molecule("CH3CH2OH")),
    "large_molecule": large_molecule(),
    "lone_atom": Atoms("Ar"),
    "cell_without_pbc": Atoms("H2O", molecule("H2O").positions, cell=np.diag([3.0, 3, 3])),
    "bulk": displaced(bulk("NaCl", "rocksalt", a=5.64, cubic=True)),
    "cell_smaller_than_cutoff": bulk("Fe"),
    "triclinic": triclinic(),
    "left_handed": left_handed(),
    "slab_with_vacuum": slab(vacuum=6.0),
    "slab_without_third_vector": slab(),
    "wire": wire(),
    "outside_the_cell": outside(),
}


def block_of(*atoms: Atoms) -> Block:
    return Block.from_structures(
        [Structure(a.numbers, a.positions, cell=a.cell.array, pbc=a.pbc) for a in atoms]
    )


def edge_set(source, target, shift) -> list[tuple[int, ...]]:
    return sorted(
        (int(j), int(i), *map(int, s)) for j, i, s in zip(source, target, shift, strict=True)
    )


def expected_edges(atoms: Atoms, cutoff: float) -> list[tuple[int, ...]]:
    target, source, shift = neighbor_list("ijS", atoms, cutoff)
    return edge_set(source, target, shift)


@pytest.mark.parametrize("cutoff", [2.9, 5.2])
@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_ase(name, cutoff):
    atoms = CASES[name]
    edges = find_edges(block_of(atoms), cutoff)
    found = edge_set(edges.source, edges.target, edges.shift)
    assert found == expected_edges(atoms, cutoff)
    assert edges.offsets.tolist() == [0, len(found)]
    assert (np.diff(edges.target) >= 0).all()


def test_vectors_of_edges_are_within_the_cutoff():
    atoms = CASES["triclinic"]
    edges = find_edges(block_of(atoms), 5.2)
    positions = atoms.positions
    vectors = positions[edges.source] - positions[edges.target] + edges.shift @ atoms.cell.array
    distances = np.linalg.norm(vectors, axis=1)
    assert 0 < distances.min() <= distances.max() < 5.2
    np.testing.assert_allclose(vectors.sum(axis=0), 0.0, atol=1e-9)  # both directions are there


def test_mixed_structures_keep_their_order():
    names = [*CASES, "ethanol", "bulk", "lone_atom"]
    edges = find_edges(block_of(*(CASES[name] for name in names)), 4.0)
    for index, name in enumerate(names):
        one = edges.take(np.array([index]))
        found = edge_set(one.source, one.target, one.shift)
        assert found == expected_edges(CASES[name], 4.0), name
    assert (edges.source.dtype, edges.target.dtype, edges.shift.dtype) == (np.int32,) * 3


def test_many_molecules_are_searched_in_pieces(monkeypatch):
    monkeypatch.setattr(neighbors, "PAIRS_AT_ONCE", 200)  # two ethanols at a time
    molecules = [displaced(molecule("CH3CH2OH"), seed) for seed in range(5)]
    edges = find_edges(block_of(*molecules), 2.0)
    for index, atoms in enumerate(molecules):
        one = edges.take(np.array([index]))
        assert edge_set(one.source, one.target, one.shift) == expected_edges(atoms, 2.0)


def test_no_structures_have_no_edges():
    edges = find_edges(block_of(), 5.0)
    assert edges.offsets.tolist() == [0]
    assert len(edges.source) == 0


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1)])
def test_completed_cells_keep_what_repeats(pbc):
    pbc = np.array(pbc, dtype=bool)
    cell = np.array([[3.0, 0.2, 0.0], [0.0, 4.0, 1.0], [0.5, 0.0, 5.0]])
    completed = complete_cell(cell, pbc)
    np.testing.assert_array_equal(completed[pbc], cell[pbc])
    assert abs(np.linalg.det(completed)) > 0.5
    np.testing.assert_allclose(completed[~pbc] @ cell[pbc].T, 0.0, atol=1e-12)
