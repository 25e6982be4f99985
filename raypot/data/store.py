"""The store: structures with their labels in columns on disk, checked before they are believed.

A store is a Zarr v3 group in one folder (or behind an fsspec URL) with a manifest that lists the
size and hash of every file. Opening checks presence and sizes, reading checks the checksum of
every chunk, `verify` checks the hashes. Damage is an error that names the file and the
structures, never a number.

**Shapes** N atoms, S structures.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raypot.data.cards import Card
from raypot.data.store_columns import (
    COLUMNS,
    WORD_COLUMNS,
    ColumnReader,
    Values,
)
from raypot.data.store_files import Files, files_at
from raypot.data.store_manifest import Census, Manifest, check_files, find_damages
from raypot.data.store_write import write_files
from raypot.errors import ConfigError, LabelError, StorageError, StoreError
from raypot.properties import property_named
from raypot.structures import Block, Floats, Integers, Structure, ragged_take


class Store:
    """Structures on disk. `Store.open` makes one.

    Args:
        path: the folder or URL.
        files: what lies there.
        manifest: what must lie there.
    """

    def __init__(self, path: str, files: Files, manifest: Manifest) -> None:
        self.path = path
        self.n_structures = manifest.n_structures
        self.n_atoms = manifest.n_atoms
        self.elements = manifest.elements
        self.levels = tuple(manifest.census)
        self.fingerprint = manifest.fingerprint
        self.card = manifest.card
        self._files = files
        self._manifest = manifest
        self._readers: dict[str, ColumnReader] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store and check the manifest and every file's presence and size.

        Args:
            path: a folder or an fsspec URL.

        Raises:
            MissingInput: nothing is there.
            StoreError: not a whole store; the message names the file and its structures.
            NewerFormat: written by a newer raypot.
            StorageError: it cannot be read.
        """
        where = str(path)
        try:
            files = files_at(path)
            manifest = Manifest.read(files, where)
            check_files(manifest, files, where)
        except OSError as error:
            raise StorageError(f"{where}: cannot be read: {error}", path=where) from error
        return cls(where, files, manifest)

    def __len__(self) -> int:
        return self.n_structures

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {self.n_structures} structures)"

    def __reduce__(self) -> Any:
        return Store.open, (self.path,)

    def census(self, level: str = "reference") -> dict[str, Census]:
        """Return count and range of every label of a level.

        Raises:
            LabelError: there is no such level.
        """
        self._check_level(level)
        return dict(self._manifest.census[level])

    @cached_property
    def offsets(self) -> Integers:
        """First atom of each structure, and the end (S + 1,)."""
        n_atoms = self._reader("structures/n_atoms").read(0, self.n_structures)
        return np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)]).astype(np.int64)

    def shards(self) -> list[tuple[int, int]]:
        """Return row ranges [start, stop) that are cheap to read at once; they cover all rows.

        Each holds the atoms of about one file, and every structure is in one range.
        """
        edges = np.arange(0, self.n_atoms, self._reader("atoms/positions").shard)
        starts = np.unique(np.searchsorted(self.offsets[:-1], edges, side="left"))
        stops = [*starts[1:], self.n_structures]
        return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]

    def column(self, name: str) -> Values:
        """Return a whole column over structures (S, ...).

        Args:
            name: `n_atoms`, `cell`, `pbc`, `record`, `config_type`, `total_charge`, `spin`,
                `weight`, `source_file`, `source_index` or `content_hash`.

        Raises:
            ConfigError: there is no such column.
            StoreError: a file is damaged.
        """
        if f"structures/{name}" not in COLUMNS:
            known = [key.partition("/")[2] for key, c in COLUMNS.items() if c.per == "structure"]
            raise ConfigError(f"column {name!r}: unknown; known are {', '.join(known)}", name=name)
        values: Values = self._reader(f"structures/{name}").read(0, self.n_structures)
        if name not in WORD_COLUMNS:
            return values
        words = self._reader(f"structures/{name}_words")
        text = words.read(0, words.n_items).tobytes()
        found: Values = np.array(json.loads(text), dtype=str)[values]
        return found

    def read(
        self,
        rows: Integers | Sequence[int] | None = None,
        *,
        labels: Sequence[str] | None = None,
        level: str = "reference",
    ) -> Block:
        """Read structures with their labels.

        Args:
            rows: row numbers (S,), in any order; all by default.
            labels: properties to read; by default those that the level has. One that it does
                not have comes as a column of NaN.
            level: which labels.

        Returns:
            The structures in the order of `rows`.

        Raises:
            StoreError: a file is damaged, or a row is not in the store.
            LabelError: there is no such level.
            ConfigError: there is no such property.
        """
        self._check_level(level)
        names = tuple(self._manifest.census[level]) if labels is None else tuple(labels)
        picked = self._pick(rows)

        def read(name: str, dtype: str) -> Any:
            items = picked.structures if COLUMNS[name].per == "structure" else picked.atoms
            return self._reader(name).select(items).astype(dtype, copy=False)

        return Block(
            numbers=read("atoms/numbers", "int64"),
            positions=read("atoms/positions", "float64"),
            offsets=picked.offsets,
            cell=read("structures/cell", "float64"),
            pbc=read("structures/pbc", "bool"),
            total_charge=read("structures/total_charge", "float64"),
            spin=read("structures/spin", "float64"),
            weight=read("structures/weight", "float64"),
            rows=picked.rows,
            labels={name: self._label(name, level, picked) for name in names},
        )

    def _label(self, name: str, level: str, picked: "_Picked") -> Floats:
        """Read one label as float64; NaN where it was never written."""
        row = property_named(name)
        if name not in self._manifest.census[level]:
            n_items = len(picked.rows) if row.level == "structure" else int(picked.offsets[-1])
            return np.full((n_items, *row.shape), np.nan)
        items = picked.structures if row.level == "structure" else picked.atoms
        values: Floats = self._reader(f"labels/{level}/{name}").select(items).astype(np.float64)
        return values

    def _pick(self, rows: Integers | Sequence[int] | None) -> "_Picked":
        """Find the atoms of `rows`; rows that follow each other are read as one range."""
        if rows is None:
            every = np.arange(self.n_structures)
            return _Picked(every, self.offsets, slice(0, self.n_structures), slice(0, self.n_atoms))
        indices = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n_structures:
            raise StoreError(
                f"{self.path}: rows {indices.min()} to {indices.max()} were asked for, it has 0 to "
                f"{self.n_structures - 1}; check that the split belongs to this store",
                path=self.path,
            )
        if len(indices) and (np.diff(indices) == 1).all():
            ends = self.offsets[indices[0] : indices[-1] + 2]
            span = slice(int(indices[0]), int(indices[-1]) + 1)
            return _Picked(indices, ends - ends[0], span, slice(int(ends[0]), int(ends[-1])))
        atoms, offsets = ragged_take(self.offsets, indices)
        return _Picked(indices, offsets, indices, atoms)

    def _check_level(self, level: str) -> None:
        if level not in self.levels:
            raise LabelError(
                f"{self.path}: has no level {level!r}; it has {', '.join(self.levels)}",
                path=self.path,
                level=level,
            )

    def _reader(self, name: str) -> ColumnReader:
        if name not in self._readers:
            self._readers[name] = ColumnReader(self._files, self._manifest, self.path, name)
        return self._readers[name]


class _Picked(NamedTuple):
    """Which items a read takes: ranges, or item numbers."""

    rows: Integers
    offsets: Integers
    structures: slice | Integers
    atoms: slice | Integers


def write_store(
    path: str | Path, structures: Iterable[Structure], card: Card, *, level: str = "reference"
) -> Store:
    """Write structures into a new store: whole under its name at the end, or not at all.

    Args:
        path: a folder that does not exist yet.
        structures: read once, in order; memory stays bounded.
        card: of the data set.
        level: name of the level of theory of the labels.

    Raises:
        OutputError: `path` exists or cannot be created.
        Busy: another process is writing it.
        StorageError: the disk is full or fails.
        FormatError: there is no structure, or a label is infinite.
        ConfigError: a level that is not a plain word.
    """
    write_files(Path(path), structures, card, level)
    return Store.open(path)


def verify(path: str | Path) -> list[str]:
    """Read every file of a store and list every damage; empty when it is as it was written.

    Raises:
        MissingInput: nothing is there.
        NewerFormat: written by a newer raypot.
        StorageError: it cannot be read.
    """
    where = str(path)
    try:
        files = files_at(path)
        manifest = Manifest.read(files, where)
        return [str(damage) for damage in find_damages(manifest, files, where)]
    except StoreError as error:
        return [str(error)]
    except OSError as error:
        raise StorageError(f"{where}: cannot be read: {error}", path=where) from error
