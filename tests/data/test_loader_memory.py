import threading
import time
from itertools import chain, pairwise

import numpy as np
import pytest
from loader_cases import TINY, assert_same_steps, rows_of

from raypot.data import loader_rows
from raypot.data.loader_order import Share, cut_windows, pack, shuffle_all, shuffle_windows
from raypot.data.loader_thread import work_ahead
from raypot.errors import StoreError
from raypot.neighbors import find_edges


@pytest.mark.parametrize("limit", [1, 12, 30, None, 0])
def test_micro_batches_hold_the_atoms_allowed(make_loader, limit):
    for step in make_loader(micro_batch_atoms=limit).epoch(0):
        sizes = [len(batch.numbers) for batch in step]
        if limit == 0:
            assert len(step) == 1
            continue
        most = limit or 160
        assert all(n <= most or len(b.cell) == 1 for n, b in zip(sizes, step, strict=True))
        # Greedy: the first structure of the next would not have fitted.
        for (n_atoms, _), (_, later) in pairwise(zip(sizes, step, strict=True)):
            assert n_atoms + later.n_atoms[0] > most


@pytest.mark.parametrize(
    ("sizes", "steps", "limit", "expected"),
    [
        ([3, 3, 3, 3], [4], 6, ([0, 2, 4], [2])),
        ([3, 3, 3, 3], [3, 1], 6, ([0, 2, 3, 4], [2, 1])),
        ([9, 1, 1, 9], [4], 4, ([0, 1, 3, 4], [3])),
        ([9, 9], [2], 0, ([0, 2], [1])),
        ([2, 2], [0, 2, 0], 9, ([0, 2], [0, 1, 0])),
        ([], [0], 9, ([0], [0])),
    ],
)
def test_pack(sizes, steps, limit, expected):
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
    assert pack(offsets, steps, limit) == expected


def test_edges_are_found_once(make_loader, monkeypatch):
    asked = []

    def counting(block, cutoff):
        asked.extend(block.rows.tolist())
        return find_edges(block, cutoff)

    loader = make_loader()
    monkeypatch.setattr(loader_rows, "find_edges", counting)
    list(loader.epoch(0, start=4))
    assert len(asked) == 53 - 32
    first = list(loader.epoch(0))
    list(loader.epoch(1))
    assert sorted(asked) == list(range(53))
    assert_same_steps(loader.epoch(0), first)


def test_two_epochs_at_once(make_loader):
    loader, expected = make_loader(), list(make_loader().epoch(0))
    both = zip(loader.epoch(0), loader.epoch(0), strict=True)
    left, right = zip(*both, strict=True)
    assert_same_steps(left, expected)
    assert_same_steps(right, expected)


def test_streaming_reads_no_more_than_a_window(make_loader, mixed_store, monkeypatch):
    one_row = make_loader(memory_gb=TINY)._size.mean()
    loader = make_loader(memory_gb=3 * 16.5 * one_row / 1e9)
    assert not loader.is_held
    read, sizes = mixed_store.read, []

    def recording(rows, **how):
        sizes.append(len(rows))
        return read(rows, **how)

    monkeypatch.setattr(mixed_store, "read", recording)
    steps = rows_of(loader.epoch(0))
    assert sorted(chain.from_iterable(steps)) == list(range(53))
    assert sum(sizes) == 53
    assert 3 <= len(sizes) <= 7
    assert max(sizes) <= 24


def test_streaming_mixes_shards(make_loader, monkeypatch, mixed_store):
    shards = [(start, min(start + 5, 53)) for start in range(0, 53, 5)]
    monkeypatch.setattr(mixed_store, "shards", lambda: shards)
    loader = make_loader(memory_gb=3 * 20 * make_loader(memory_gb=TINY)._size.mean() / 1e9)
    starts = np.array([start for start, _ in shards])
    orders = [list(chain.from_iterable(rows_of(loader.epoch(epoch)))) for epoch in range(2)]
    for order in orders:
        shard = np.searchsorted(starts, order, side="right") - 1
        assert (np.diff(shard) < 0).sum() > 10  # neither shards nor rows come in order
        assert len(np.unique(shard[:16])) > 2  # a window takes in several shards
    assert orders[0] != orders[1]


def test_windows_begin_with_a_step():
    size = np.array([1.0, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1])
    assert cut_windows(size, 4.5, 2).tolist() == [0, 4, 6, 10, 11]
    assert cut_windows(size, 100.0, 2).tolist() == [0, 11]
    assert cut_windows(size, 0.0, 4).tolist() == [0, 4, 8, 11]
    assert cut_windows(np.zeros(0), 1.0, 4).tolist() == [0]


def test_orders_are_permutations():
    shard, size = np.repeat(np.arange(5), 7), np.ones(35)
    for seeds in ((0, 0), (0, 1), None):
        order, bounds = shuffle_windows(shard, size, budget=12.0, multiple=4, seeds=seeds)
        assert sorted(order) == list(range(35))
        assert bounds.tolist() == [0, 12, 24, 35]
        assert sorted(shuffle_all(35, seeds)) == list(range(35))
        assert (order.tolist() == list(range(35))) == (seeds is None)


def test_shares_of_a_batch_are_disjoint():
    shares = [Share(7, rank, 3).positions(7, 25) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(7, 25))
    assert shares[0].tolist() == [7, 10, 13, 14, 17, 20, 21, 24]
    assert Share(7, 0, 3).per_step(shares[0], 1, 4).tolist() == [3, 3, 2]


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("raypot-loader")]


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
def test_closing_leaves_no_thread(make_loader, memory_gb):
    loader = make_loader(memory_gb=memory_gb)
    steps = loader.epoch(0)
    assert loader_threads() == []  # nothing starts before the first step is asked for
    next(steps)
    assert loader_threads() != []
    steps.close()
    assert loader_threads() == []
    list(loader.epoch(0))
    assert loader_threads() == []


@pytest.mark.parametrize("memory_gb", [2.0, TINY])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_an_error_of_the_thread_is_raised(make_loader, monkeypatch, memory_gb, prefetch):
    loader = make_loader(memory_gb=memory_gb, prefetch=prefetch)

    def failing(block, cutoff):
        raise StoreError("positions/c/0: altered on disk")

    monkeypatch.setattr(loader_rows, "find_edges", failing)
    with pytest.raises(StoreError, match="positions/c/0: altered on disk"):
        list(loader.epoch(0))
    assert loader_threads() == []


def test_waiting_is_counted(make_loader, monkeypatch):
    def slow(block, cutoff):
        time.sleep(0.05)
        return find_edges(block, cutoff)

    loader = make_loader()
    assert loader.wait_seconds == 0.0
    monkeypatch.setattr(loader_rows, "find_edges", slow)
    list(loader.epoch(0))
    cold = loader.wait_seconds
    assert cold >= 0.05
    list(loader.epoch(1))
    assert loader.wait_seconds < cold + 0.05


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_work_ahead_keeps_order_and_depth(depth):
    made = []

    def items():
        for item in range(10):
            made.append(item)
            yield item

    taken = []
    for item in work_ahead(items(), depth):
        taken.append(item)
        assert len(made) <= len(taken) + max(depth, 1)
    assert taken == made == list(range(10))


def test_work_ahead_closes_its_source():
    closed = threading.Event()

    def items():
        try:
            yield from range(100)
        finally:
            closed.set()

    ahead = work_ahead(items(), 2)
    assert next(ahead) == 0
    ahead.close()
    assert closed.is_set()
