from itertools import chain

import numpy as np
import pytest
import torch
from loader_cases import CUTOFF, TINY, assert_same_steps, rows_of

from raypot.data.loader import Loader
from raypot.data.targets import Targets
from raypot.errors import ConfigError, LabelError, StoreError
from raypot.neighbors import find_edges


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
def test_batches_hold_what_the_store_holds(make_loader, mixed_store, mixed_targets, memory_gb):
    loader = make_loader(memory_gb=memory_gb)
    assert loader.is_held == (memory_gb > 1)
    whole = mixed_store.read()
    for step in loader.epoch(0):
        for batch in step:
            block = whole.take(batch.row.numpy())
            edges = find_edges(block, CUTOFF)
            assert batch.numbers.tolist() == block.numbers.tolist()
            np.testing.assert_array_equal(batch.positions, block.positions)
            np.testing.assert_array_equal(batch.cell, block.cell)
            np.testing.assert_array_equal(batch.labels["forces"], block.labels["forces"])
            np.testing.assert_array_equal(
                batch.labels["energy"], mixed_targets.subtract(block).labels["energy"]
            )
            first = np.repeat(block.offsets[:-1], np.diff(edges.offsets))
            np.testing.assert_array_equal(batch.source, edges.source + first)
            np.testing.assert_array_equal(batch.target, edges.target + first)
            np.testing.assert_array_equal(batch.shift, edges.shift)


def test_only_the_labels_asked_travel(make_loader):
    for step in make_loader(labels=("charges",)).epoch(0):
        assert all(list(batch.labels) == ["charges"] for batch in step)
    batch = next(make_loader(labels=()).epoch(0))[0]
    assert batch.labels == {}


def test_energies_are_subtracted_before_the_cast(make_loader, mixed_targets, mixed_store):
    """Energies of -1.48e6 eV an atom keep their differences of 0.1 eV in float32."""
    exact = mixed_targets.subtract(mixed_store.read()).labels["energy"]
    for step in make_loader(dtype=torch.float32).epoch(0):
        for batch in step:
            assert batch.labels["energy"].dtype == torch.float32
            np.testing.assert_allclose(
                batch.labels["energy"], exact[batch.row], rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("energy", "stress", "dipole")}, "has no stress, dipole; it has .*energy"),
        ({"level": "ccsd"}, "has no level 'ccsd'; it has reference"),
        ({"labels": ("charges",), "rows": np.arange(0, 50, 2)}, "none of 25 rows .* has charges"),
    ],
)
def test_labels_that_are_not_there(make_loader, changes, message):
    with pytest.raises(LabelError, match=message):
        make_loader(**changes)


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_an_epoch(make_loader, mixed_store, shuffle, memory_gb):
    loader = make_loader(shuffle=shuffle, memory_gb=memory_gb)
    assert (loader.n_structures, loader.n_steps) == (53, 7)
    for epoch in range(3):
        steps = rows_of(loader.epoch(epoch))
        assert [len(step) for step in steps] == [8] * 6 + [5]
        assert sorted(chain.from_iterable(steps)) == list(range(53))


def test_without_shuffle_the_rows_keep_their_order(make_loader):
    for memory_gb in (2.0, TINY):
        steps = rows_of(make_loader(shuffle=False, memory_gb=memory_gb).epoch(4))
        assert list(chain.from_iterable(steps)) == list(range(53))[::-1]


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
def test_the_order_depends_on_seed_and_epoch_alone(make_loader, memory_gb):
    loader = make_loader(memory_gb=memory_gb, seed=5)
    first = rows_of(loader.epoch(1))
    assert rows_of(loader.epoch(2)) != first
    assert rows_of(loader.epoch(1)) == first
    assert rows_of(make_loader(memory_gb=memory_gb, seed=6).epoch(1)) != first
    for prefetch in (0, 1, 9):
        again = make_loader(memory_gb=memory_gb, seed=5, prefetch=prefetch, micro_batch_atoms=5)
        assert rows_of(again.epoch(1)) == first


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
@pytest.mark.parametrize("world", [2, 3, 11])
def test_ranks_share_every_global_batch(make_loader, world, memory_gb):
    whole = rows_of(make_loader(memory_gb=memory_gb).epoch(3))
    loaders = [make_loader(memory_gb=memory_gb, rank=rank, world=world) for rank in range(world)]
    shares = [rows_of(loader.epoch(3)) for loader in loaders]
    assert {loader.n_steps for loader in loaders} == {len(whole)}
    for step, expected in enumerate(whole):
        for rank in range(world):
            assert shares[rank][step] == expected[rank::world]


def test_a_rank_without_structures_gets_an_empty_step(make_loader):
    steps = list(make_loader(rank=6, world=7, rows=np.arange(13)).epoch(0))
    assert [len(step) for step in steps] == [1, 0]
    idle = make_loader(rank=9, world=10, rows=np.arange(13))
    assert list(idle.epoch(0)) == [(), ()]


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
def test_an_epoch_goes_on_in_the_middle(make_loader, memory_gb):
    loader = make_loader(memory_gb=memory_gb)
    whole = list(loader.epoch(2))
    for start in (0, 1, 4, 6, 7):
        fresh = make_loader(memory_gb=memory_gb)
        assert_same_steps(fresh.epoch(2, start), whole[start:])


@pytest.mark.parametrize("start", [-1, 8])
def test_an_epoch_has_no_such_step(make_loader, start):
    with pytest.raises(ConfigError, match=f"cannot start at step {start}: the epoch has 7 steps"):
        make_loader().epoch(0, start)


@pytest.mark.parametrize(
    "changes", [{"rows": []}, {"batch_size": 0}, {"rank": 2, "world": 2}, {"rank": -1}]
)
def test_loaders_that_make_no_sense(make_loader, changes):
    with pytest.raises(ConfigError, match="expected rows, a batch of one structure at least"):
        make_loader(**changes)


def test_rows_of_another_store(make_loader):
    with pytest.raises(StoreError, match="check that the split belongs to this store"):
        make_loader(rows=np.array([3, 400]))


def test_no_self_energy_for_a_row(mixed_store):
    with pytest.raises(LabelError, match="no self energy of C, O, Al"):
        Loader(
            mixed_store,
            np.arange(10),
            labels=("energy",),
            targets=Targets({1: -13.6}, scale=1.0, rank=0, spread={}),
            cutoff=CUTOFF,
            batch_size=4,
            dtype=torch.float32,
        )
