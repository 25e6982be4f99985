import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from raypot.batch import Batch, collate, collate_consecutive, segment_sum
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure

CUTOFF = 4.0  # Å


@pytest.fixture
def block() -> Block:
    """Ammonia, bulk aluminium, a lone atom and carbon dioxide, with some labels."""
    generator = np.random.default_rng(3)
    found = []
    for atoms in (molecule("NH3"), bulk("Al"), Atoms("He"), molecule("CO2")):
        n_atoms = len(atoms)
        labels = {"energy": generator.normal(), "forces": generator.normal(size=(n_atoms, 3))}
        if n_atoms > 3:
            labels["charges"] = generator.normal(size=n_atoms)
        found.append(
            Structure(
                atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, labels=labels
            )
        )
    return Block.from_structures(found)


def assert_same(left: Batch, right: Batch) -> None:
    for name in Batch._fields[:-1]:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=0)
    assert sorted(left.labels) == sorted(right.labels)
    for name, value in left.labels.items():
        torch.testing.assert_close(value, right.labels[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_collate_gives_tensors_of_one_float_type(block, dtype):
    batch = collate(block, find_edges(block, CUTOFF), dtype)
    floats = [batch.positions, batch.cell, batch.n_atoms, batch.shift, batch.total_charge]
    floats += [batch.spin, batch.weight, *batch.labels.values()]
    assert {tensor.dtype for tensor in floats} == {dtype}
    integers = [batch.numbers, batch.structure, batch.row, batch.source, batch.target]
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert batch.pbc.dtype == torch.bool
    assert batch.n_atoms.tolist() == [4, 1, 1, 3]
    assert batch.structure.tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3]


def test_a_batch_holds_the_edges_of_its_structures(block):
    edges = find_edges(block, CUTOFF)
    batch = collate(block, edges, torch.float64)
    periods = torch.einsum("ek,ekl->el", batch.shift, batch.cell[batch.structure[batch.source]])
    vectors = batch.positions[batch.source] - batch.positions[batch.target] + periods
    distances = vectors.norm(dim=1)
    assert ((distances > 0.5) & (distances < CUTOFF)).all()
    assert (batch.structure[batch.source] == batch.structure[batch.target]).all()
    assert (batch.target.diff() >= 0).all()
    per_structure = torch.bincount(batch.structure[batch.target], minlength=4)
    assert per_structure.tolist() == np.diff(edges.offsets).tolist()


def test_missing_labels_are_nan(block):
    batch = collate(block, find_edges(block, CUTOFF), torch.float64)
    assert batch.labels["charges"].isnan().tolist() == [False] * 4 + [True] * 5


@pytest.mark.parametrize("bounds", [[0, 4], [0, 1, 2, 3, 4], [0, 3, 4], [0, 0, 2, 2, 4, 4]])
def test_consecutive_batches_equal_single_ones(block, bounds):
    edges = find_edges(block, CUTOFF)
    batches = collate_consecutive(block, edges, np.array(bounds), torch.float64)
    assert len(batches) == len(bounds) - 1
    for batch, start, stop in zip(batches, bounds[:-1], bounds[1:], strict=True):
        picked = np.arange(start, stop)
        assert_same(batch, collate(block.take(picked), edges.take(picked), torch.float64))


def test_consecutive_batches_are_no_views(block):
    batches = collate_consecutive(block, find_edges(block, CUTOFF), np.array([0, 2, 4]))
    tensors = [batches[1].positions, batches[1].source, batches[1].labels["forces"]]
    assert not any(tensor._is_view() for tensor in tensors)


def test_to_copies_every_tensor(block):
    batch = collate(block, find_edges(block, CUTOFF))
    moved = batch.to("meta")
    assert {t.device.type for t in [*moved[:-1], *moved.labels.values()]} == {"meta"}
    assert moved.positions.shape == batch.positions.shape


def test_segment_sum_adds_the_rows_of_a_segment(rng):
    values = torch.from_numpy(rng.normal(size=(30, 2, 3)))
    index = torch.from_numpy(rng.integers(0, 6, size=30))
    summed = segment_sum(values, index, 8)
    for segment in range(8):
        torch.testing.assert_close(summed[segment], values[index == segment].sum(dim=0))
    assert (summed[6:] == 0).all()


def test_segment_sum_has_the_gather_as_gradient(rng):
    values = torch.from_numpy(rng.normal(size=(7, 2))).requires_grad_()
    index = torch.tensor([0, 2, 2, 1, 0, 2, 2])
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, index, 4), values)
    assert segment_sum(values[:0], index[:0], 3).shape == (3, 2)
