"""Everything that ASE reads: extended XYZ, ASE databases, trajectories, outputs of codes.

Extended XYZ is cut into frames here, so that a fault names its line and a large compressed file is
read once from start to end; ASE parses the frames. Note that ASE moves keys that it knows
(`energy`, `forces`, `stress`, `dipole`, `charges`, ...) into the results of a calculator.
"""

import gzip
import io
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import ParseError, iread
from ase.io.extxyz import read_xyz
from ase.io.formats import UnknownFileTypeError, filetype

from raypot.data.cards import GEOMETRY_KEYS, Card
from raypot.data.importers.rows import BadRow, KeyLog, Place, RawRow, to_structure
from raypot.errors import ConfigError, FormatError
from raypot.structures import Structure

XYZ_ENDINGS = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
REFUSED = {"bundletrajectory", "postgresql", "mysql", "mariadb"}  # folders and servers
# What parsers of ASE raise on files that are not as they should be.
PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    ParseError,
    RuntimeError,
    SyntaxError,
    TypeError,
    UnknownFileTypeError,
    ValueError,
    sqlite3.Error,
    zlib.error,
)


def read(path: Path, card: Card, log: KeyLog) -> Iterator[Structure | BadRow]:
    """Read the structures of a file.

    Args:
        path: the file; `.gz` is read through.
        card: keys, units, signs.
        log: gains the keys that were used.

    Raises:
        FormatError: not a format that ASE reads, or damaged; it names the line where it can.
        ConfigError: the card names keys of the geometry.
    """
    chosen = [key for key in GEOMETRY_KEYS if key in card.keys]
    if chosen:
        raise ConfigError(
            f"{path}: the card names a key for {chosen[0]}, but ASE finds the geometry itself; "
            "remove it from [keys]"
        )
    if path.name.endswith(XYZ_ENDINGS):
        frames = _xyz_frames(path)
    elif _is_sqlite(path):
        frames = _database_rows(path)
    else:
        frames = _any_frames(path)
    for index, frame in enumerate(frames):
        if isinstance(frame, str):
            yield BadRow((path.name, index), frame)
        else:
            yield to_structure(_raw_row(frame, (path.name, index)), card, log)


def _raw_row(atoms: Atoms, source: tuple[str, int]) -> RawRow:
    results = {} if atoms.calc is None else dict(atoms.calc.results)
    geometry = ("numbers", "positions")
    arrays = {key: value for key, value in atoms.arrays.items() if key not in geometry}
    return RawRow(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.asarray(atoms.cell[:]),
        pbc=np.asarray(atoms.pbc),
        places=(
            Place("calculator", "calculator", results),
            Place("info", "structure", atoms.info),
            Place("arrays", "atom", arrays),
        ),
        source=source,
    )


def _xyz_frames(path: Path) -> Iterator[Atoms | str]:
    """Yield the frames of an XYZ file, or the reason why one cannot be read.

    Raises:
        FormatError: a line that should be a number of atoms is not; what follows is lost.
    """
    line_number = 0
    lines = _text_lines(path)
    for line in lines:
        line_number += 1
        if not line.strip():
            continue
        n_atoms = _atom_count(path, line_number, line)
        first = line_number
        frame = [line]
        while len(frame) < n_atoms + 2 and (line := next(lines, "")):
            frame.append(line)
            line_number += 1
        yield _parse_frame(frame, n_atoms, first)


def _text_lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: cannot be read to its end ({error}); copy it again", path=str(path)
        ) from error


def _atom_count(path: Path, line_number: int, line: str) -> int:
    try:
        n_atoms = int(line)
    except ValueError:
        n_atoms = -1
    if n_atoms < 0:
        raise FormatError(
            f"{path}, line {line_number}: {line.strip()!r:.60}, expected the number of atoms of "
            "the next structure; the count of the structure before may be wrong",
            path=str(path),
            line=line_number,
        )
    return n_atoms


def _parse_frame(frame: list[str], n_atoms: int, first: int) -> Atoms | str:
    """Parse the lines of one frame that begins at line `first` of its file."""
    where = f"lines {first} to {first + len(frame) - 1}"
    n_lines = max(0, len(frame) - 2)
    if n_lines < n_atoms:
        return f"{where}: the file ends after {n_lines} of {n_atoms} atoms"
    if n_atoms == 0:
        return f"{where}: has no atoms"
    if bad := _uneven_line(frame, first):
        return bad
    try:
        return next(iter(read_xyz(io.StringIO("".join(frame)), index=0)))
    except KeyError as error:
        return f"{where}: {error} is not an element or a column"
    except PARSE_ERRORS as error:
        return f"{where}: {error}"


def _uneven_line(frame: list[str], first: int) -> str:
    """Name the first atom line that has fewer columns than the first."""
    widths = [len(line.split()) for line in frame[2:]]
    for offset, width in enumerate(widths):
        if width < widths[0]:
            return f"line {first + 2 + offset}: {width} columns, the lines before have {widths[0]}"
    return ""


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _database_rows(path: Path) -> Iterator[Atoms]:
    """Yield the rows of an ASE database, with its key-value pairs and data in `info`.

    Raises:
        FormatError: a SQLite file that ASE did not write.
    """
    from ase.db import connect

    try:
        _require_systems(path)
        for row in connect(path, type="db").select():
            atoms = row.toatoms()
            atoms.info.update(row.data)
            # ASE answers `charge` with the sum of initial charges, whatever was written.
            pairs = {key: x for key, x in row.key_value_pairs.items() if key != "charge"}
            atoms.info.update(pairs)
            yield atoms
    except PARSE_ERRORS as error:
        raise FormatError(
            f"{path}: not a readable ASE database ({error})", path=str(path)
        ) from error


def _require_systems(path: Path) -> None:
    """Check the table that ASE needs; ASE itself would create it in a foreign file."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    finally:
        connection.close()
    if "systems" not in tables:
        raise ValueError(f"it has the tables {', '.join(sorted(tables))}")


def _any_frames(path: Path) -> Iterator[Atoms]:
    options: dict[str, Any] = {"index": ":", "do_not_split_by_at_sign": True}
    n_read = 0
    try:
        form = filetype(str(path))
        if form in REFUSED:
            raise UnknownFileTypeError(f"{form} is not a file")
        for atoms in iread(path, format=form, **options):
            yield atoms
            n_read += 1
    except PARSE_ERRORS as error:
        raise FormatError(
            f"{path}: ASE cannot read it after {n_read} structures "
            f"({type(error).__name__}: {error}); convert it to extended XYZ",
            path=str(path),
        ) from error
