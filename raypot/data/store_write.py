"""Write a store while iterating over structures.

Memory is bounded by one shard of every column, eight bytes a structure, and the distinct words
(records, config types, files). Nothing is under the final name before all of it is on the disk.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from raypot.config import fingerprint
from raypot.data.cards import Card
from raypot.data.store_columns import (
    CHUNK,
    COLUMNS,
    WORD_COLUMNS,
    WORDS,
    ColumnWriter,
    Encoder,
    label_column,
)
from raypot.data.store_manifest import MANIFEST, Census, FileEntry, Manifest
from raypot.data.store_staging import staged
from raypot.durable import write_synced
from raypot.errors import ConfigError, FormatError
from raypot.properties import PROPERTIES
from raypot.structures import Block, Floats, Integers, Structure

LEVEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
STRUCTURES_AT_ONCE = 1024
HASH_RESOLUTION = 1e-6  # Å: geometries that agree to this are the same
SOURCE_COLUMNS = ("structures/source_file", "structures/source_index")  # not content


def write_files(path: Path, structures: Iterable[Structure], card: Card, level: str) -> None:
    """Write a store at `path`.

    Args:
        path: must not exist.
        structures: read once, in order.
        card: kept in the manifest; says which labels need float64.
        level: name of the level of theory of the labels.

    Raises:
        OutputError: `path` exists or cannot be created.
        Busy: another process is writing it.
        StorageError: the disk is full or fails; nothing is left at `path`.
        FormatError: there is no structure, or a label is infinite.
        ConfigError: a level that is not a plain word.
    """
    if not LEVEL_NAME.fullmatch(level):
        raise ConfigError(
            f"level {level!r}: expected letters, digits and _ . + -, starting with one of the "
            "first two, 64 at most",
            level=level,
        )
    with staged(path) as folder:
        writer = StoreWriter(folder, card, level)
        remaining = iter(structures)
        while several := _next_structures(remaining):
            writer.add(several)
        manifest = writer.finish(str(path))
        write_synced(folder / MANIFEST, manifest.to_bytes())


def _next_structures(remaining: Iterable[Structure]) -> list[Structure]:
    """Return the next structures, about a chunk of atoms at most."""
    several: list[Structure] = []
    n_atoms = 0
    for structure in islice(remaining, STRUCTURES_AT_ONCE):
        several.append(structure)
        n_atoms += len(structure)
        if n_atoms >= CHUNK["atom"]:
            break
    return several


class CensusSums:
    """Running count, sum, minimum and maximum of one label.

    Args:
        name: the property.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_labelled = 0
        self.n_values = 0
        self.total = 0.0
        self.minimum = np.inf
        self.maximum = -np.inf

    def add(self, values: Floats, offsets: Integers) -> None:
        """Add the values of several structures; NaN where there is none.

        Args:
            values: (N, ...) or (S, ...) in raypot's unit.
            offsets: first atom of each structure, and the end (S + 1,).
        """
        present = ~np.isnan(values)
        if not present.any():
            return
        has_label = present.reshape(len(values), -1).any(axis=1)
        if PROPERTIES[self.name].level == "atom":
            has_label = np.logical_or.reduceat(has_label, offsets[:-1])
        known = values[present]
        self.n_labelled += int(has_label.sum())
        self.n_values += known.size
        self.total += float(known.sum(dtype=np.float64))
        self.minimum = min(self.minimum, float(known.min()))
        self.maximum = max(self.maximum, float(known.max()))

    def result(self, n_structures: int) -> Census:
        """Return the census over `n_structures`."""
        return Census(
            name=self.name,
            unit=PROPERTIES[self.name].unit,
            count=self.n_labelled,
            missing=n_structures - self.n_labelled,
            minimum=self.minimum,
            mean=self.total / self.n_values,
            maximum=self.maximum,
        )


class StoreWriter:
    """Fill the folder of a new store.

    Args:
        folder: empty.
        card: of the data set.
        level: of the labels.
    """

    def __init__(self, folder: Path, card: Card, level: str) -> None:
        self.encoder = Encoder(folder)
        self.card = card
        self.level = level
        self.columns = {name: ColumnWriter(self.encoder, name, c) for name, c in COLUMNS.items()}
        self.labels: dict[str, ColumnWriter] = {}
        self.census: dict[str, CensusSums] = {}
        self.words: dict[str, dict[str, int]] = {name: {} for name in WORD_COLUMNS}
        self.elements: set[int] = set()
        self.n_structures = 0
        self.atom_ends: list[Integers] = [np.zeros(1, dtype=np.int64)]

    def add(self, structures: list[Structure]) -> None:
        """Append structures."""
        block = Block.from_structures(structures)
        self.elements.update(np.unique(block.numbers).tolist())
        for name, values in self._structure_columns(structures, block).items():
            self.columns[name].append(values)
        for name in block.labels.keys() | self.labels.keys():
            self._add_label(name, block)
        self.n_structures += len(block)
        self.atom_ends.append(self.atom_ends[-1][-1] + block.offsets[1:])

    def finish(self, where: str) -> Manifest:
        """Write what is left and return the manifest of the folder."""
        if not self.n_structures:
            raise FormatError(f"{where}: there is no structure to store", path=where)
        for name, words in self.words.items():
            text = json.dumps(list(words)).encode()
            writer = ColumnWriter(self.encoder, f"structures/{name}_words", WORDS)
            writer.append(np.frombuffer(text, dtype=np.uint8))
            self.columns[writer.name] = writer
        writers = [*self.columns.values(), *self.labels.values()]
        for writer in writers:
            writer.finish()
        content = {w.name: w.content() for w in writers if not w.name.startswith(SOURCE_COLUMNS)}
        rows = {name: sums.result(self.n_structures) for name, sums in sorted(self.census.items())}
        return Manifest(
            n_structures=self.n_structures,
            n_atoms=int(self.atom_ends[-1][-1]),
            elements=tuple(sorted(self.elements)),
            fingerprint=fingerprint(content),
            card=self.card,
            census={self.level: rows},
            files=self._files(writers),
            written_by=version("raypot"),
        )

    def _structure_columns(self, structures: list[Structure], block: Block) -> dict[str, Any]:
        return {
            "structures/n_atoms": block.n_atoms,
            "structures/cell": block.cell,
            "structures/pbc": block.pbc,
            "structures/total_charge": block.total_charge,
            "structures/spin": block.spin,
            "structures/weight": block.weight,
            "structures/record": self._codes("record", [s.record for s in structures]),
            "structures/config_type": self._codes(
                "config_type", [s.config_type for s in structures]
            ),
            "structures/source_file": self._codes("source_file", [s.source[0] for s in structures]),
            "structures/source_index": np.array([s.source[1] for s in structures]),
            "structures/content_hash": np.array(
                [content_hash(s) for s in structures], dtype=np.uint64
            ),
            "atoms/numbers": block.numbers,
            "atoms/positions": block.positions,
        }

    def _codes(self, name: str, values: list[str]) -> Integers:
        words = self.words[name]
        return np.array([words.setdefault(value, len(words)) for value in values], dtype=np.int64)

    def _add_label(self, name: str, block: Block) -> None:
        """Append one label; its column begins when the first value comes."""
        n_items = len(block) if PROPERTIES[name].level == "structure" else len(block.numbers)
        values = block.labels.get(name)
        if values is None or np.isnan(values).all():
            if name in self.labels:
                self.labels[name].skip(n_items)
            return
        if name not in self.labels:
            column = label_column(name, name in self.card.precise)
            self.labels[name] = ColumnWriter(self.encoder, f"labels/{self.level}/{name}", column)
            before = self.n_structures if column.per == "structure" else self.atom_ends[-1][-1]
            self.labels[name].skip(int(before))
            self.census[name] = CensusSums(name)
        writer = self.labels[name]
        with np.errstate(over="ignore"):
            stored = values.astype(writer.column.dtype)
        if np.isinf(stored).any():
            raise FormatError(
                f"{name}: a value between structures {self.n_structures} and "
                f"{self.n_structures + len(block) - 1} is infinite or too large; remove it",
                name=name,
            )
        writer.append(stored)
        self.census[name].add(stored.astype(np.float64), block.offsets)

    def _files(self, writers: list[ColumnWriter]) -> dict[str, FileEntry]:
        """List every file with its size, its hash, and the structures that it holds."""
        ends = np.concatenate(self.atom_ends)
        files = {}
        for writer in writers:
            for name, shard in writer.files.items():
                first, stop = shard.first, shard.stop
                if writer.column is WORDS:
                    first, stop = 0, self.n_structures
                elif writer.column.per == "atom":
                    first = int(np.searchsorted(ends, first, side="right")) - 1
                    stop = int(np.searchsorted(ends, stop, side="left"))
                files[name] = FileEntry(shard.size, shard.sha256, first, stop)
        for name, size, sha256 in self.encoder.write_metadata():
            files[name] = FileEntry(size, sha256, 0, 0)
        return files


def content_hash(structure: Structure) -> int:
    """Return 64 bits that are equal for equal geometries, whatever their labels.

    Elements in order, positions and repeating lattice vectors to 1e-6 Å, charge and spin.
    """
    grid = np.rint(structure.positions / HASH_RESOLUTION).astype(np.int64)
    cell = np.where(structure.pbc[:, None], structure.cell, 0.0)
    digest = hashlib.blake2b(digest_size=8)
    digest.update(structure.numbers.tobytes())
    digest.update(grid.tobytes())
    digest.update(np.rint(cell / HASH_RESOLUTION).astype(np.int64).tobytes())
    digest.update(np.array([structure.total_charge, structure.spin]).tobytes())
    return int.from_bytes(digest.digest(), "little")
