import numpy as np
import pytest

from raypot.errors import ConfigError, FormatError, ShapeMismatch
from raypot.structures import Block, EdgeBlock, Structure, ragged_take


def water(**changes) -> Structure:
    values = {
        "numbers": [8, 1, 1],
        "positions": [[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]],
        "labels": {"energy": -14.2, "forces": np.arange(9.0).reshape(3, 3)},
        "source": ("water.xyz", 3),
    }
    return Structure(**{**values, **changes})


def helium(**changes) -> Structure:
    return Structure(numbers=[2], positions=np.zeros((1, 3)), **changes)


def silicon() -> Structure:
    cell = 2.715 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Structure([14, 14], [[0.0, 0, 0], [1.3575] * 3], cell=cell, pbc=True, total_charge=1.0)


def test_structure_makes_arrays_of_its_own_types():
    structure = water(pbc=False, labels={"energy": -14, "dipole": (0, 0, 1)})
    assert structure.numbers.dtype == np.int64
    assert structure.positions.dtype == structure.labels["energy"].dtype == np.float64
    assert structure.labels["energy"].shape == ()
    assert structure.pbc.shape == (3,)
    assert len(structure) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"numbers": [], "positions": np.zeros((0, 3))}, FormatError, "has no atoms"),
        ({"positions": np.zeros((2, 3))}, ShapeMismatch, r"positions has shape \(2, 3\)"),
        ({"cell": np.eye(2)}, ShapeMismatch, r"cell has shape \(2, 2\), expected \(3, 3\)"),
        ({"labels": {"forces": np.zeros((4, 3))}}, ShapeMismatch, r"forces has shape \(4, 3\)"),
        ({"labels": {"energy": [1.0, 2.0]}}, ShapeMismatch, r"energy has shape \(2,\)"),
        ({"numbers": [8, 1, 0]}, FormatError, r"atomic numbers \[0\]; expected 1 to 118"),
        ({"numbers": [8, 1, 119]}, FormatError, r"atomic numbers \[119\]"),
        ({"positions": np.full((3, 3), np.nan)}, FormatError, "not finite"),
        ({"cell": np.full((3, 3), np.inf)}, FormatError, "not finite"),
        ({"pbc": True}, FormatError, "its cell has no volume"),
        (
            {"pbc": [True, False, True], "cell": np.diag([5.0, 0, 0])},
            FormatError,
            "repeats along a lattice vector that is zero",
        ),
    ],
)
def test_structure_says_what_is_wrong_and_where(changes, error, message):
    with pytest.raises(error, match=f"water.xyz, structure 3: .*{message}"):
        water(**changes)


def test_structure_refuses_unknown_properties():
    with pytest.raises(ConfigError, match="property 'enrgy': unknown; known are energy"):
        water(labels={"enrgy": 1.0})


def test_block_gives_back_its_structures():
    structures = [water(), helium(labels={"energy": -78.8}, weight=2.0), silicon()]
    block = Block.from_structures(structures)
    assert len(block) == 3
    assert block.n_atoms.tolist() == [3, 1, 2]
    assert sorted(block.labels) == ["energy", "forces"]
    assert np.isnan(block.labels["forces"][3:]).all()
    for index, structure in enumerate(structures):
        again = block.structure(index)
        np.testing.assert_array_equal(again.positions, structure.positions)
        np.testing.assert_array_equal(again.cell, structure.cell)
        assert again.numbers.tolist() == structure.numbers.tolist()
        assert again.pbc.tolist() == structure.pbc.tolist()
        assert (again.weight, again.total_charge) == (structure.weight, structure.total_charge)
        assert sorted(again.labels) == sorted(structure.labels)
        for name, value in structure.labels.items():
            np.testing.assert_array_equal(again.labels[name], value)


def test_block_keeps_only_the_labels_asked():
    assert list(Block.from_structures([water()], labels=["charges"]).labels) == ["charges"]
    assert np.isnan(Block.from_structures([water()], labels=["charges"]).labels["charges"]).all()


def test_empty_block():
    block = Block.from_structures([], labels=["energy", "forces"])
    assert len(block) == 0
    assert block.labels["forces"].shape == (0, 3)
    assert len(block.take([])) == 0


def test_take_reorders_and_repeats():
    block = Block.from_structures([water(), helium(), silicon()])
    taken = block.take([2, 0, 0])
    assert taken.rows.tolist() == [2, 0, 0]
    assert taken.numbers.tolist() == [14, 14, 8, 1, 1, 8, 1, 1]
    assert taken.offsets.tolist() == [0, 2, 5, 8]
    np.testing.assert_array_equal(taken.labels["forces"][2:5], block.labels["forces"][:3])
    np.testing.assert_array_equal(taken.labels["energy"], block.labels["energy"][[2, 0, 0]])


def test_concatenate_undoes_take():
    block = Block.from_structures([water(), helium(), silicon()])
    joined = Block.concatenate([block.take([0]), block.take([1, 2])])
    for name in ("numbers", "positions", "offsets", "cell", "pbc", "total_charge", "rows"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(block, name))
    np.testing.assert_array_equal(joined.labels["forces"], block.labels["forces"])


def test_ragged_take_follows_the_groups(rng):
    counts = rng.integers(0, 5, size=20)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    indices = rng.integers(0, 20, size=50)
    items, new_offsets = ragged_take(offsets, indices)
    expected = [list(range(offsets[k], offsets[k + 1])) for k in indices]
    assert items.tolist() == [item for group in expected for item in group]
    assert np.diff(new_offsets).tolist() == [len(group) for group in expected]


def test_edges_join_and_are_taken():
    one = EdgeBlock(
        source=np.array([1, 0], np.int32),
        target=np.array([0, 1], np.int32),
        shift=np.array([[0, 0, 1], [0, 0, -1]], np.int32),
        offsets=np.array([0, 2]),
    )
    none = EdgeBlock.concatenate([])
    assert none.offsets.tolist() == [0]
    assert len(none.take(np.zeros(0, np.int64)).source) == 0
    joined = EdgeBlock.concatenate([one, none, one])
    assert joined.offsets.tolist() == [0, 2, 4]
    assert joined.take(np.array([1])).source.tolist() == [1, 0]
    assert joined.take(np.array([1])).shift.tolist() == one.shift.tolist()
    assert joined.source.dtype == np.int32
