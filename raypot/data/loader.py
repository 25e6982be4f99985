"""Batches for training and evaluation: shuffled, with edges, packed, made ahead of the step.

Small sets are held in memory with their edges. Larger ones are streamed: shards in random order,
windows of them that fit into memory, structures shuffled inside each window.

**Shapes** S structures, N atoms, E edges.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice, pairwise
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from raypot.batch import Batch, collate_consecutive
from raypot.config import Config
from raypot.data.loader_order import Share, pack, shuffle_all, shuffle_windows
from raypot.data.loader_rows import HeldRows, Rows, Source, Window
from raypot.data.loader_thread import work_ahead
from raypot.data.store import Store
from raypot.data.targets import Targets
from raypot.errors import ConfigError, StoreError
from raypot.structures import Integers

GIGABYTE = 1e9
MICRO_BATCH_ATOMS = 160  # the edge tensors of about five drug-like molecules stay in cache
ATOMS_AT_ONCE = 8192  # atoms that are gathered and converted together, some steps at a time
# Of the memory, a window may take this: one is in use, one is read, and reading needs room.
WINDOW_SHARE = 1 / 3

Step = tuple[Batch, ...]


class LoaderConfig(Config):
    """How rows become batches."""

    prefetch: int = Field(4, ge=0, description="steps made ahead of the consumer; 0: no thread")
    memory_gb: float = Field(
        2.0, gt=0.0, description="rows kept decoded with their edges; larger sets are streamed"
    )
    micro_batch_atoms: int | None = Field(
        None,
        ge=0,
        description=f"atoms of a micro-batch; 0: the whole batch at once; default "
        f"{MICRO_BATCH_ATOMS}, which suits the caches of a CPU",
    )


class _Window(NamedTuple):
    """Consecutive positions of an epoch, and where their structures come from."""

    start: int
    stop: int
    source: Source


class Loader:
    """Give the rows of one role, step by step, to one rank.

    The order of an epoch depends on the seed and on the number of the epoch only. Global batch b
    is the structures b * batch_size to (b + 1) * batch_size of that order; rank r takes every
    `world`-th of it, from r. Every row comes once an epoch, the last, ragged batch included.

    Args:
        store: where the rows lie.
        rows: row numbers (S,).
        labels: properties that the batches carry.
        targets: what is subtracted from the energies, in float64.
        cutoff: of the edges in Å.
        batch_size: structures of a global batch.
        dtype: of the floating tensors.
        seed: of the order.
        shuffle: whether the order is random; else it is that of `rows`.
        rank: number of this rank.
        world: number of ranks.
        level: of the labels.
        config: memory, prefetch, micro-batches.

    Raises:
        LabelError: a label is asked that the store does not have.
        ConfigError: no rows, or sizes that make no sense.
    """

    def __init__(  # noqa: PLR0913  # what a batch is made of; all but two by name
        self,
        store: Store,
        rows: Integers,
        *,
        labels: tuple[str, ...],
        targets: Targets,
        cutoff: float,
        batch_size: int,
        dtype: torch.dtype,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        level: str = "reference",
        config: LoaderConfig = LoaderConfig(),  # noqa: B008  # frozen
    ) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == 0 or batch_size < 1 or not 0 <= rank < world:
            raise ConfigError(
                f"loader: {len(rows)} rows in batches of {batch_size} for rank {rank} of {world}; "
                "expected rows, a batch of one structure at least, and ranks counted from 0"
            )
        if not 0 <= rows.min() <= rows.max() < store.n_structures:
            raise StoreError(
                f"{store.path}: rows {rows.min()} to {rows.max()} were asked for, it has 0 to "
                f"{store.n_structures - 1}; check that the split belongs to this store"
            )
        self.n_structures = len(rows)
        self.n_steps = -(-len(rows) // batch_size)
        self.wait_seconds = 0.0
        self._share = Share(batch_size, rank, world)
        self._seed, self._shuffle = seed, shuffle
        self._cutoff, self._dtype, self._config = cutoff, dtype, config
        self._rows = Rows(store, rows, tuple(labels), level, targets)
        self._rows.check_labels()
        self._n_atoms = np.asarray(store.column("n_atoms"))[rows]
        limit = config.micro_batch_atoms
        self._max_atoms = MICRO_BATCH_ATOMS if limit is None else limit

        of_columns, of_edges = self._rows.bytes_per_atom(cutoff)
        budget = config.memory_gb * GIGABYTE
        fits = float(self._n_atoms.sum()) * (of_columns + of_edges) <= budget
        self._held = HeldRows(self._rows, cutoff) if fits else None
        self._size, self._window_budget = self._n_atoms * of_columns, budget * WINDOW_SHARE

    @property
    def is_held(self) -> bool:
        """Whether all rows stay in memory with their edges."""
        return self._held is not None

    def epoch(self, number: int, start: int = 0) -> Iterator[Step]:
        """Return the steps of an epoch, each as this rank's micro-batches.

        Args:
            number: of the epoch; the order depends on it.
            start: the first step to give, to go on in the middle of an epoch.

        Returns:
            One item for each optimizer step; `()` if this rank has no structure in it. Close it
            (or read it to its end) to stop its thread.

        Raises:
            ConfigError: the epoch has no such step.
        """
        if not 0 <= start <= self.n_steps:
            raise ConfigError(
                f"loader: cannot start at step {start}: the epoch has {self.n_steps} steps of "
                f"{self._share.batch_size} structures; has the data or the batch size changed?"
            )
        return self._count_waiting(number, start)

    def _count_waiting(self, number: int, start: int) -> Generator[Step, None, None]:
        with closing(work_ahead(self._steps(number, start), self._config.prefetch)) as steps:
            while True:
                before = perf_counter()
                step = next(steps, None)
                self.wait_seconds += perf_counter() - before
                if step is None:
                    return
                yield step

    def _steps(self, number: int, start: int) -> Generator[Step, None, None]:
        """Make the steps from `start` on, several at a time."""
        order, bounds = self._order(number)
        size = self._share.batch_size
        atoms_of_step = self._n_atoms.mean() * size / self._share.world
        at_once = max(1, int(ATOMS_AT_ONCE / atoms_of_step))
        # A window is read while the one before it is used.
        ahead = 0 if self.is_held else min(1, self._config.prefetch)
        with closing(work_ahead(self._windows(order, bounds, start), ahead)) as windows:
            for window in windows:
                first, last = max(start, window.start // size), -(-window.stop // size)
                for step in range(first, last, at_once):
                    yield from self._make(order, window, step, min(step + at_once, last))
                del window

    def _order(self, number: int) -> tuple[Integers, Integers]:
        """Return the index at each position of an epoch, and the bounds of its windows."""
        seeds = (self._seed, number) if self._shuffle else None
        if self._held is not None:
            return shuffle_all(self.n_structures, seeds), np.array([0, self.n_structures])
        starts = np.array([first for first, _ in self._rows.store.shards()])
        return shuffle_windows(
            np.searchsorted(starts, self._rows.numbers, side="right") - 1,
            self._size,
            budget=self._window_budget,
            multiple=self._share.batch_size,
            seeds=seeds,
        )

    def _windows(
        self, order: Integers, bounds: Integers, start: int
    ) -> Generator[_Window, None, None]:
        """Open the windows from the one that holds step `start`."""
        for first, stop in pairwise(bounds.tolist()):
            if stop > start * self._share.batch_size:
                yield _Window(first, stop, self._open(order, first, stop))

    def _open(self, order: Integers, start: int, stop: int) -> Source:
        if self._held is not None:
            return self._held
        return Window(self._rows, order[self._share.positions(start, stop)], self._cutoff)

    def _make(self, order: Integers, window: _Window, first: int, last: int) -> Iterator[Step]:
        """Make the steps from `first` to before `last` of one window."""
        size = self._share.batch_size
        positions = self._share.positions(first * size, min(last * size, window.stop))
        block, edges = window.source.take(order[positions])
        n_structures = self._share.per_step(positions, first, last).tolist()
        bounds, n_batches = pack(block.offsets.tolist(), n_structures, self._max_atoms)
        batches = iter(collate_consecutive(block, edges, np.array(bounds), self._dtype))
        return (tuple(islice(batches, count)) for count in n_batches)
