"""Rows in memory: all of them with their edges, or one window of them at a time.

**Shapes** S structures, N atoms, E edges.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raypot.data.store import Store
from raypot.data.targets import Targets
from raypot.errors import LabelError
from raypot.neighbors import find_edges
from raypot.structures import Block, EdgeBlock, Integers

SAMPLE = 32  # structures that tell the memory of an atom
GROWTH = 1.5  # of the memory of the edges when it is full


@dataclass(frozen=True)
class Rows:
    """The rows of a loader as they come from the store: the labels asked, self energies taken out.

    Args:
        store: where they lie.
        numbers: their row numbers (S,).
        labels: properties to read.
        level: of the labels.
        targets: self energies.
    """

    store: Store
    numbers: Integers
    labels: tuple[str, ...]
    level: str
    targets: Targets

    def read(self, indices: Integers) -> tuple[Block, Integers]:
        """Read the rows at `indices` in the order of the store, which is the cheap one.

        Returns:
            The structures, and where each of `indices` lies among them.
        """
        rows, place = np.unique(self.numbers[indices], return_inverse=True)
        block = self.store.read(rows, labels=self.labels, level=self.level)
        return self.targets.subtract(block), place.astype(np.int64).reshape(-1)

    def check_labels(self) -> None:
        """Make sure that the store has every label that is asked.

        Raises:
            LabelError: it has not; the message says which ones it has.
        """
        census = self.store.census(self.level)
        present = [name for name, entry in census.items() if entry.count]
        missing = [name for name in self.labels if name not in present]
        if missing:
            raise LabelError(
                f"{self.store.path}: level {self.level!r} has no {', '.join(missing)}; it has "
                f"{', '.join(present) or 'no labels'}: set the weights of these terms to 0, or "
                "name their keys in the dataset card and import again",
                missing=tuple(missing),
            )

    def bytes_per_atom(self, cutoff: float) -> tuple[float, float]:
        """Estimate the memory of an atom from a few structures.

        Returns:
            Bytes of its columns, and of its edges.
        """
        picked = np.linspace(0, len(self.numbers) - 1, min(SAMPLE, len(self.numbers)))
        block, _ = self.read(picked.astype(np.int64))
        edges = find_edges(block, cutoff)
        n_atoms = len(block.numbers)
        return size_of_block(block) / n_atoms, size_of_edges(edges) / n_atoms


class Source(Protocol):
    """Structures that can be taken, with their edges."""

    def take(self, indices: Integers) -> tuple[Block, EdgeBlock]:
        """Return the structures at `indices` of the loader's rows, in that order."""
        ...


class HeldRows:
    """All rows of a loader; the edges of each are found when it is first asked for, and kept.

    Args:
        rows: where they come from.
        cutoff: of the edges in Å.

    Raises:
        LabelError: no row at all has one of the labels.
    """

    def __init__(self, rows: Rows, cutoff: float) -> None:
        self.block, self._place = rows.read(np.arange(len(rows.numbers)))
        _check_some_labels(rows, self.block)
        self._edges = EdgeMemory(len(self.block), cutoff)

    def take(self, indices: Integers) -> tuple[Block, EdgeBlock]:
        """Return the structures at `indices`, in that order, with their edges."""
        places = self._place[indices]
        block = self.block.take(places)
        return block, self._edges.take(block, places)


class Window:
    """Rows that are read, used once and dropped; their edges are not kept.

    Args:
        rows: where they come from.
        indices: of the loader's rows.
        cutoff: of the edges in Å.
    """

    def __init__(self, rows: Rows, indices: Integers, cutoff: float) -> None:
        self.block, place = rows.read(indices)
        self._place = place
        self._sorter = np.argsort(indices)
        self._indices = indices[self._sorter]
        self._cutoff = cutoff

    def take(self, indices: Integers) -> tuple[Block, EdgeBlock]:
        """Return the structures at `indices`, in that order, with their edges."""
        found = self._sorter[np.searchsorted(self._indices, indices)]
        block = self.block.take(self._place[found])
        return block, find_edges(block, self._cutoff)


class EdgeMemory:
    """Edges of structures, found once and kept in the order of the first asking.

    Threads may share it.

    Args:
        n_structures: structures that may be asked for.
        cutoff: in Å.
    """

    def __init__(self, n_structures: int, cutoff: float) -> None:
        self._cutoff = cutoff
        self._place = np.full(n_structures, -1)  # among the kept ones
        self._kept = EdgeBlock.concatenate([])
        self._room = self._kept  # the same columns with free space at their ends
        self._lock = Lock()

    def take(self, block: Block, indices: Integers) -> EdgeBlock:
        """Return the edges of the structures at `indices`.

        Args:
            block: these structures, in the same order.
            indices: which ones of all (S,).
        """
        with self._lock:
            missing = np.flatnonzero(self._place[indices] < 0)
            if len(missing):
                # A structure that is asked for twice at once is found once.
                missing = missing[np.unique(indices[missing], return_index=True)[1]]
                self._keep(find_edges(block.take(missing), self._cutoff), indices[missing])
            return self._kept.take(self._place[indices])

    def _keep(self, found: EdgeBlock, indices: Integers) -> None:
        n_known, start = len(self._kept.offsets) - 1, len(self._kept.source)
        stop = start + len(found.source)
        room, offsets = self._room, np.concatenate([self._kept.offsets, start + found.offsets[1:]])
        self._room = EdgeBlock(
            source=_extend(room.source, start, found.source),
            target=_extend(room.target, start, found.target),
            shift=_extend(room.shift, start, found.shift),
            offsets=self._room.offsets,
        )
        room = self._room
        self._kept = EdgeBlock(room.source[:stop], room.target[:stop], room.shift[:stop], offsets)
        self._place[indices] = n_known + np.arange(len(indices))


def _extend(column: NDArray[np.int32], start: int, values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Write `values` at `start`, into more room where they do not fit."""
    stop = start + len(values)
    if stop > len(column):
        wider = np.empty((max(stop, int(GROWTH * len(column))), *column.shape[1:]), column.dtype)
        wider[:start] = column[:start]
        column = wider
    column[start:stop] = values
    return column


def size_of_block(block: Block) -> int:
    """Return the bytes of a block's columns."""
    columns = [value for value in vars(block).values() if isinstance(value, np.ndarray)]
    return sum(column.nbytes for column in (*columns, *block.labels.values()))


def size_of_edges(edges: EdgeBlock) -> int:
    """Return the bytes of the edges' columns."""
    return edges.source.nbytes + edges.target.nbytes + edges.shift.nbytes


def _check_some_labels(rows: Rows, block: Block) -> None:
    empty = [name for name, values in block.labels.items() if np.isnan(values).all()]
    if empty:
        raise LabelError(
            f"{rows.store.path}: level {rows.level!r}: none of {len(block)} rows "
            f"({int(block.rows.min())} to {int(block.rows.max())}) has {', '.join(empty)}; set the "
            "weights of these terms to 0, or divide the rows otherwise",
            missing=tuple(empty),
        )
