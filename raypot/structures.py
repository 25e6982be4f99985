"""Structures one by one, and in columns.

`Structure` is what importers make and users hold: one geometry with its labels. `Block` holds many
in columns, as the store does; `EdgeBlock` holds their edges.

**Shapes** N atoms, S structures, E edges.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raypot.constants import MAX_ATOMIC_NUMBER
from raypot.errors import FormatError, ShapeMismatch
from raypot.properties import PROPERTIES, property_named

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

MIN_VOLUME = 1e-6  # Å³ of a fully periodic cell
_COLUMNS = ("numbers", "positions", "cell", "pbc", "total_charge", "spin", "weight", "rows")


@dataclass(frozen=True)
class Structure:
    """One geometry with its labels, checked when made.

    Args:
        numbers: atomic numbers (N,).
        positions: (N, 3) in Å.
        cell: lattice vectors as rows (3, 3) in Å; zero where there is none.
        pbc: whether it repeats along each lattice vector (3,).
        total_charge: in e.
        spin: multiplicity 2S + 1.
        labels: property name to value in raypot's units; a missing label is absent or NaN.
        record: what it belongs to: all structures of one molecule or run.
        config_type: a free word of the source, such as `bulk` or `IsolatedAtom`.
        weight: its weight in the loss.
        source: file and index it came from.

    Raises:
        FormatError: not finite, an unknown element, no volume where it repeats.
        ShapeMismatch: arrays that do not fit together.
    """

    numbers: Integers
    positions: Floats
    cell: Floats = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: Booleans = field(default_factory=lambda: np.zeros(3, dtype=bool))
    total_charge: float = 0.0
    spin: float = 1.0
    labels: Mapping[str, Floats] = field(default_factory=dict)
    record: str = ""
    config_type: str = ""
    weight: float = 1.0
    source: tuple[str, int] = ("", 0)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "numbers", np.asarray(self.numbers, dtype=np.int64))
        set_field(self, "positions", np.asarray(self.positions, dtype=np.float64))
        set_field(self, "cell", np.asarray(self.cell, dtype=np.float64))
        set_field(self, "pbc", np.broadcast_to(np.asarray(self.pbc, dtype=bool), (3,)))
        labels = {name: np.asarray(value, dtype=np.float64) for name, value in self.labels.items()}
        set_field(self, "labels", labels)
        self._check()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def where(self) -> str:
        """The file and index, for messages."""
        file, index = self.source
        return f"{file}, structure {index}" if file else f"structure {index}"

    def _check(self) -> None:
        n_atoms = len(self.numbers)
        if n_atoms == 0:
            raise FormatError(f"{self.where}: has no atoms")
        expected = {"positions": (n_atoms, 3), "cell": (3, 3)}
        for name, shape in expected.items():
            self._check_shape(name, getattr(self, name), shape)
        for name, value in self.labels.items():
            row = property_named(name)
            self._check_shape(
                name, value, (n_atoms, *row.shape) if row.level == "atom" else row.shape
            )
        if self.numbers.min() < 1 or self.numbers.max() > MAX_ATOMIC_NUMBER:
            bad = sorted({int(z) for z in self.numbers if not 1 <= z <= MAX_ATOMIC_NUMBER})
            raise FormatError(
                f"{self.where}: atomic numbers {bad}; expected 1 to {MAX_ATOMIC_NUMBER}"
            )
        if not np.isfinite(self.positions).all() or not np.isfinite(self.cell).all():
            raise FormatError(f"{self.where}: positions or cell are not finite")
        if self.pbc.all() and abs(np.linalg.det(self.cell)) < MIN_VOLUME:
            raise FormatError(f"{self.where}: repeats in all directions but its cell has no volume")
        if not self.cell[self.pbc].any(axis=-1).all():
            raise FormatError(f"{self.where}: repeats along a lattice vector that is zero")

    def _check_shape(self, name: str, value: Floats, shape: tuple[int, ...]) -> None:
        if value.shape != shape:
            raise ShapeMismatch(
                f"{self.where}: {name} has shape {value.shape}, expected {shape}", name=name
            )


@dataclass(frozen=True)
class EdgeBlock:
    """Directed edges of the structures of a block, sorted by target within each structure.

    The vector of an edge is `positions[source] - positions[target] + shift @ cell`.

    Args:
        source: atom index inside its structure (E,).
        target: atom index inside its structure (E,); the center.
        shift: periods of the cell (E, 3).
        offsets: first edge of each structure, and the end (S + 1,).
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    shift: NDArray[np.int32]
    offsets: Integers

    def take(self, indices: Integers) -> "EdgeBlock":
        """Return the edges of the structures at `indices`, in that order."""
        picked, offsets = ragged_take(self.offsets, indices)
        return EdgeBlock(
            source=self.source.take(picked),
            target=self.target.take(picked),
            shift=self.shift.take(picked, axis=0),
            offsets=offsets,
        )

    @classmethod
    def concatenate(cls, blocks: Sequence["EdgeBlock"]) -> "EdgeBlock":
        """Join the edges of structures, one block after the other."""
        counts = [np.zeros(1, np.int64), *(np.diff(block.offsets) for block in blocks)]
        return cls(
            source=np.concatenate([np.zeros(0, np.int32), *(block.source for block in blocks)]),
            target=np.concatenate([np.zeros(0, np.int32), *(block.target for block in blocks)]),
            shift=np.concatenate([np.zeros((0, 3), np.int32), *(block.shift for block in blocks)]),
            offsets=np.cumsum(np.concatenate(counts)),
        )


@dataclass(frozen=True)
class Block:
    """Many structures in columns.

    Args:
        numbers: (N,).
        positions: (N, 3) in Å.
        offsets: first atom of each structure, and the end (S + 1,).
        cell: (S, 3, 3) in Å.
        pbc: (S, 3).
        total_charge: (S,) in e.
        spin: multiplicities (S,).
        weight: (S,).
        rows: row numbers in the store (S,).
        labels: property name to (N, ...) or (S, ...); NaN where missing.
    """

    numbers: Integers
    positions: Floats
    offsets: Integers
    cell: Floats
    pbc: Booleans
    total_charge: Floats
    spin: Floats
    weight: Floats
    rows: Integers
    labels: dict[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def n_atoms(self) -> Integers:
        """Atoms of each structure (S,)."""
        return np.diff(self.offsets)

    def take(self, indices: Integers | Sequence[int]) -> "Block":
        """Return the structures at `indices` of this block, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        atoms, offsets = ragged_take(self.offsets, indices)
        labels = {
            name: value[atoms if PROPERTIES[name].level == "atom" else indices]
            for name, value in self.labels.items()
        }
        return Block(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            offsets=offsets,
            cell=self.cell[indices],
            pbc=self.pbc[indices],
            total_charge=self.total_charge[indices],
            spin=self.spin[indices],
            weight=self.weight[indices],
            rows=self.rows[indices],
            labels=labels,
        )

    @classmethod
    def from_structures(
        cls, structures: Sequence[Structure], labels: Iterable[str] | None = None
    ) -> "Block":
        """Stack structures into columns.

        Args:
            structures: at least none.
            labels: properties to keep; by default every one that occurs.
        """
        names = {name for s in structures for name in s.labels} if labels is None else set(labels)
        counts = np.array([len(s) for s in structures], dtype=np.int64)
        return cls(
            numbers=np.concatenate([np.zeros(0, np.int64), *(s.numbers for s in structures)]),
            positions=np.concatenate([np.zeros((0, 3)), *(s.positions for s in structures)]),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            cell=np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
            total_charge=np.array([s.total_charge for s in structures], dtype=np.float64),
            spin=np.array([s.spin for s in structures], dtype=np.float64),
            weight=np.array([s.weight for s in structures], dtype=np.float64),
            rows=np.arange(len(structures), dtype=np.int64),
            labels={name: _label_column(structures, name) for name in sorted(names)},
        )

    @classmethod
    def concatenate(cls, blocks: Sequence["Block"]) -> "Block":
        """Join blocks that carry the same labels, one after the other."""
        counts = np.concatenate([block.n_atoms for block in blocks])
        columns = {
            name: np.concatenate([getattr(block, name) for block in blocks]) for name in _COLUMNS
        }
        labels = {
            name: np.concatenate([block.labels[name] for block in blocks])
            for name in blocks[0].labels
        }
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets=offsets, labels=labels, **columns)

    def structure(self, index: int) -> Structure:
        """Return the structure at `index` with the labels that it has."""
        atoms = slice(self.offsets[index], self.offsets[index + 1])
        labels = {}
        for name, values in self.labels.items():
            value = values[atoms] if PROPERTIES[name].level == "atom" else values[index]
            if not np.isnan(value).all():
                labels[name] = np.asarray(value, dtype=np.float64)
        return Structure(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cell[index],
            pbc=self.pbc[index],
            total_charge=float(self.total_charge[index]),
            spin=float(self.spin[index]),
            weight=float(self.weight[index]),
            labels=labels,
            source=("", int(self.rows[index])),
        )


def _label_column(structures: Sequence[Structure], name: str) -> Floats:
    """Stack one label over structures; NaN where a structure lacks it."""
    row = PROPERTIES[name]
    values = []
    for s in structures:
        shape = (len(s), *row.shape) if row.level == "atom" else (1, *row.shape)
        value = s.labels.get(name)
        values.append(np.full(shape, np.nan) if value is None else value.reshape(shape))
    return np.concatenate(values) if values else np.zeros((0, *row.shape))


def ragged_take(offsets: Integers, indices: Integers) -> tuple[Integers, Integers]:
    """Return the items of the groups at `indices`, and the offsets of the result.

    Args:
        offsets: first item of each group, and the end (G + 1,).
        indices: groups to take (K,).

    Returns:
        Item numbers in the order of `indices`, and their offsets (K + 1,).
    """
    counts = offsets[indices + 1] - offsets[indices]
    ends = np.cumsum(counts)
    new_offsets = np.concatenate([[0], ends]).astype(np.int64)
    jump = np.repeat(offsets[indices] - new_offsets[:-1], counts)
    return np.arange(new_offsets[-1], dtype=np.int64) + jump, new_offsets
