"""Import: raw files of any number and kind into one store, checked row by row.

A row that cannot be believed is set aside with its reason; the report says how many and why,
which key every label was read from, and what else looks odd.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonpath
from pathlib import Path
from typing import Literal

import numpy as np

from raypot.config import did_you_mean
from raypot.data.cards import GEOMETRY_KEYS, VIRIAL_KEYS, Card
from raypot.data.importers import IMPORTERS, importer_name
from raypot.data.importers.rows import BadRow, KeyLog
from raypot.data.store import Store, write_store
from raypot.errors import ConfigError, FormatError, MissingInput, UsageError
from raypot.neighbors import complete_cell, find_edges
from raypot.structures import Block, Floats, Structure

OnBad = Literal["quarantine", "error"]
OVERLAP = 0.3  # Å: atoms closer than this are a fault of the file
REACH = 1.0  # Å: cutoff of the neighbor search that looks for them
PAIRWISE_ATOMS = 500  # up to here all pairs are faster than a neighbor search
MIN_WIDTH = 2 * OVERLAP  # Å: thinner cells need the images that the neighbor search sees
FLATNESS = 1e-6  # area or volume of the repeating lattice vectors, over that of a box


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Args:
        store: the new store; `store.census()` has the rows of the census table.
        keys_used: property to the key (or keys) of the sources that it was read from.
        quarantined: rows that were left out, with the reason.
        warnings: what looks odd but was believed.
        n_duplicates: structures whose geometry occurred before.
    """

    store: Store
    keys_used: dict[str, str]
    quarantined: list[BadRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    n_duplicates: int = 0


def import_data(
    sources: Sequence[Path],
    destination: Path,
    *,
    card: Card,
    format: str | None = None,
    level: str = "reference",
    on_bad: OnBad = "quarantine",
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Read `sources` one after the other into a new store.

    Args:
        sources: files.
        destination: folder of the store; must not exist.
        card: what the keys, units and signs of the sources mean.
        format: a name of `IMPORTERS`; by default from each file's ending.
        level: name of the level of theory of the labels.
        on_bad: whether bad rows are left out, or stop the import.
        progress: called with the number of rows read so far, after each.

    Raises:
        MissingInput: a source does not exist.
        FormatError: a source cannot be read or has no usable structure, a bad row with
            `on_bad="error"`, or a key of the card that no structure has.
        OutputError: the store exists or cannot be created.
        StorageError: the disk is full or fails.
    """
    gate = _Gate(card, on_bad, progress)
    store = write_store(destination, gate.structures(sources, format), card, level=level)
    hashes = store.column("content_hash")
    n_duplicates = len(hashes) - len(np.unique(hashes))
    return ImportReport(
        store=store,
        keys_used={name: ", ".join(sorted(keys)) for name, keys in gate.log.used.items()},
        quarantined=gate.quarantined,
        warnings=_warnings(store, level, gate, n_duplicates),
        n_duplicates=n_duplicates,
    )


def read_structures(
    sources: Sequence[Path],
    *,
    card: Card | None = None,
    format: str | None = None,
    on_bad: OnBad = "error",
) -> Iterator[Structure]:
    """Yield the checked structures of raw files without making a store.

    Args:
        sources: files.
        card: what their keys, units and signs mean.
        format: a name of `IMPORTERS`; by default from each file's ending.
        on_bad: whether bad rows stop the reading or are left out.

    Raises:
        MissingInput: a source does not exist.
        FormatError: a source cannot be read or has no usable structure, or a bad row.
    """
    return _Gate(card or Card(), on_bad, None).structures(sources, format)


class _Gate:
    """Let good structures through and keep the others with their reasons."""

    def __init__(self, card: Card, on_bad: OnBad, progress: Callable[[int], None] | None) -> None:
        self.card = card
        self.on_bad = on_bad
        self.progress = progress
        self.log = KeyLog()
        self.quarantined: list[BadRow] = []
        self.n_read = 0
        self.n_without_force = 0

    def structures(self, sources: Sequence[Path], form: str | None) -> Iterator[Structure]:
        """Yield the good structures of all sources; faults of whole sources are found first."""
        sources = [Path(source) for source in sources]
        _check_sources(sources, form)
        for source, name in zip(sources, distinct_names(sources), strict=True):
            yield from self._of_source(source, name, form or importer_name(source))
        self._check_card_keys()

    def _of_source(self, source: Path, name: str, form: str) -> Iterator[Structure]:
        n_good, n_before = 0, len(self.quarantined)
        for row in IMPORTERS[form](source, self.card, self.log):
            self.n_read += 1
            if self.progress is not None:
                self.progress(self.n_read)
            good = self._judge(row, source, name)
            if good is not None:
                n_good += 1
                yield good
        if not n_good:
            bad = self.quarantined[n_before:]
            reason = f"; the first of {len(bad)} bad rows: {bad[0].reason}" if bad else ""
            raise FormatError(f"{source}: no usable structure{reason}", path=str(source))

    def _judge(self, row: Structure | BadRow, source: Path, name: str) -> Structure | None:
        index = row.source[1]
        reason = row.reason if isinstance(row, BadRow) else fault(row)
        if isinstance(row, Structure) and reason is None:
            forces = row.labels.get("forces")
            self.n_without_force += forces is not None and len(row) > 1 and not forces.any()
            return row if row.source[0] == name else replace(row, source=(name, index))
        if self.on_bad == "error":
            raise FormatError(
                f"{source}, structure {index}: {reason}; mend the file, or leave such rows out "
                "with --on-bad quarantine",
                path=str(source),
                index=index,
            )
        self.quarantined.append(BadRow((name, index), str(reason)))
        return None

    def _check_card_keys(self) -> None:
        """Refuse a card that names a key which no structure has: a slip of the pen."""
        for name, key in self.card.keys.items():
            if key and name not in GEOMETRY_KEYS and key not in self.log.present:
                known = list(self.log.present)
                raise FormatError(
                    f"card, [keys] {name} = {key!r}: no structure has this key"
                    f"{did_you_mean(key, known) if known else ''}",
                    name=name,
                    key=key,
                )


def _check_sources(sources: list[Path], form: str | None) -> None:
    if form is not None and form not in IMPORTERS:
        raise ConfigError(f"format {form!r}: unknown{did_you_mean(form, list(IMPORTERS))}")
    if not sources:
        raise UsageError("import: no source was named; name at least one file")
    for source in sources:
        if not source.exists():
            raise MissingInput(f"{source}: no such file", path=str(source))
        if source.is_dir():
            raise MissingInput(f"{source}: is a folder; name the files in it", path=str(source))


def distinct_names(sources: Sequence[Path]) -> list[str]:
    """Return the file names, with as many folders as it takes to tell them apart.

    Absolute places are never part of it: the content of a store does not depend on where its
    sources lay.
    """
    names = [source.name for source in sources]
    if len(set(names)) == len(set(sources)):
        return names
    absolute = [source.absolute() for source in sources]
    top = Path(commonpath([path.parent for path in absolute]))
    return [path.relative_to(top).as_posix() for path in absolute]


def fault(structure: Structure) -> str | None:
    """Return why a geometry cannot be believed, or None.

    What `Structure` itself refuses is not looked at again.
    """
    cell, pbc = structure.cell, structure.pbc
    if pbc.any():
        lengths = np.linalg.norm(cell[pbc], axis=1)
        shape = cell[pbc] / lengths[:, None]
        if np.sqrt(max(0.0, np.linalg.det(shape @ shape.T))) < FLATNESS:
            return "its repeating lattice vectors lie in one line or plane"
    if pbc.all() and np.linalg.det(cell) < 0:
        return "its cell is left-handed; exchange two lattice vectors"
    distance = closest_distance(structure)
    if distance < OVERLAP:
        return f"two atoms are {distance:.3f} Å apart, expected at least {OVERLAP} Å"
    return None


def closest_distance(structure: Structure) -> float:
    """Return the smallest distance in Å between two atoms or their images, if below 0.3 Å.

    Above that the value is only a bound: distances of 0.3 Å and more may come out larger.
    """
    cell = complete_cell(structure.cell, structure.pbc)
    inverse = np.linalg.inv(cell) if structure.pbc.any() else np.eye(3)
    widths = 1 / np.linalg.norm(inverse, axis=0)  # Å between the faces of the cell
    is_thin = bool((widths[structure.pbc] < MIN_WIDTH).any())
    if len(structure) > PAIRWISE_ATOMS or is_thin:
        return _closest_edge(structure)
    first, second = np.triu_indices(len(structure), k=1)
    vectors = structure.positions[first] - structure.positions[second]
    if structure.pbc.any():
        # A vector shorter than half of every width is its own nearest image.
        periods = np.rint(vectors @ inverse) * structure.pbc
        vectors = vectors - periods @ cell
    return _smallest(vectors)


def _closest_edge(structure: Structure) -> float:
    edges = find_edges(Block.from_structures([structure], labels=()), REACH)
    ends = structure.positions[edges.source] - structure.positions[edges.target]
    return _smallest(ends + edges.shift @ structure.cell)


def _smallest(vectors: Floats) -> float:
    if not len(vectors):
        return float("inf")
    return float(np.sqrt((vectors**2).sum(axis=1).min()))


def _warnings(store: Store, level: str, gate: _Gate, n_duplicates: int) -> list[str]:
    """List what was believed but looks odd."""
    lines = []
    for name, row in store.census(level).items():
        if row.minimum == row.maximum and row.count > 1:
            lines.append(f"{name}: every value is {row.minimum:g} {row.unit}; a placeholder?")
    for name, keys in gate.log.used.items():
        if len(keys) > 1:
            lines.append(f"{name}: read from different keys: {_counted(keys)}")
    if gate.n_without_force:
        lines.append(f"forces: all zero in {gate.n_without_force} structures of several atoms")
    unused = VIRIAL_KEYS & gate.log.present.keys()
    if unused and "stress" not in gate.log.used:
        lines.append(f"stress: {sorted(unused)[0]!r} was not used; name it in the card to use it")
    if n_duplicates:
        lines.append(f"{n_duplicates} structures repeat the geometry of an earlier one")
    return lines + [f"{note} ({count} times)" for note, count in gate.log.notes.items()]


def _counted(keys: Counter[str]) -> str:
    return ", ".join(f"{key} ({count})" for key, count in keys.most_common())
