"""The order of an epoch, and how its steps fall to ranks and micro-batches: pure functions.

The order depends on the seed and on the number of the epoch alone, so that ranks, threads and
restarts agree on it.

**Shapes** S structures of the loader. A position is a place in the order of the epoch, an index
is a place among the rows of the loader.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raypot.structures import Floats, Integers


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one rank takes.

    Args:
        batch_size: structures of a global batch.
        rank: number of this rank.
        world: number of ranks.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    def positions(self, start: int, stop: int) -> Integers:
        """Return the positions of this rank from `start` to `stop`.

        Rank r takes the structures r, r + world, r + 2 world, ... of each global batch.
        """
        positions = np.arange(start, stop)
        own: Integers = positions[positions % self.batch_size % self.world == self.rank]
        return own

    def per_step(self, positions: Integers, first_step: int, last_step: int) -> Integers:
        """Count the structures of each step from `first_step` up to, not with, `last_step`."""
        steps = positions // self.batch_size - first_step
        return np.bincount(steps, minlength=last_step - first_step)


def shuffle_all(n_structures: int, seeds: tuple[int, int] | None) -> Integers:
    """Return the index at each position of an epoch (S,).

    Args:
        n_structures: S.
        seeds: seed of the run and number of the epoch; None keeps the order of the rows.
    """
    if seeds is None:
        return np.arange(n_structures)
    return np.random.Generator(np.random.PCG64(seeds)).permutation(n_structures)


def shuffle_windows(
    shard: Integers, size: Floats, *, budget: float, multiple: int, seeds: tuple[int, int] | None
) -> tuple[Integers, Integers]:
    """Shuffle the shards, cut their rows into windows that fit into memory, shuffle each.

    Args:
        shard: the shard of each structure (S,).
        size: bytes of each structure in memory (S,).
        budget: bytes of a window.
        multiple: windows begin at multiples of this position, so that no step spans two.
        seeds: seed of the run and number of the epoch; None keeps the order of the rows.

    Returns:
        The index at each position (S,), and the bounds of the windows.
    """
    if seeds is None:
        return np.arange(len(shard)), cut_windows(size, budget, multiple)
    generator = np.random.Generator(np.random.PCG64(seeds))
    place = generator.permutation(int(shard.max(initial=-1)) + 1)
    order = np.argsort(place[shard], kind="stable")
    bounds = cut_windows(size[order], budget, multiple)
    for start, stop in pairwise(bounds.tolist()):
        generator.shuffle(order[start:stop])
    return order, bounds


def cut_windows(size: Floats, budget: float, multiple: int) -> Integers:
    """Cut consecutive structures into windows of at most `budget` bytes, one `multiple` at least.

    Args:
        size: bytes of each structure (S,).
        budget: bytes of a window.
        multiple: every bound but the last is a multiple of it.
    """
    total = np.concatenate([[0.0], np.cumsum(size)])
    bounds = [0]
    while bounds[-1] < len(size):
        stop = int(np.searchsorted(total, total[bounds[-1]] + budget, side="right")) - 1
        if stop < len(size):
            stop = max(stop // multiple, bounds[-1] // multiple + 1) * multiple
        bounds.append(min(stop, len(size)))
    return np.array(bounds, dtype=np.int64)


def pack(
    offsets: Sequence[int], n_structures: Sequence[int], max_atoms: int
) -> tuple[list[int], list[int]]:
    """Pack the structures of each step, in order, into micro-batches.

    Args:
        offsets: first atom of each structure, and the end.
        n_structures: structures of each step.
        max_atoms: atoms of a micro-batch, unless one structure alone has more; 0 for no limit.

    Returns:
        The first structure of each micro-batch and the end, and the micro-batches of each step.
    """
    bounds, per_step = [0], []
    for count in n_structures:
        stop, before = bounds[-1] + count, len(bounds)
        while bounds[-1] < stop:
            start = bounds[-1]
            fitting = bisect_right(offsets, offsets[start] + max_atoms) - 1 if max_atoms else stop
            bounds.append(min(max(fitting, start + 1), stop))
        per_step.append(len(bounds) - before)
    return bounds, per_step
