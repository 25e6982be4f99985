"""Readers of raw files. Each turns one file into structures, one after the other.

To add one, write `importers/mine.py` with `read(path, card, log)` and a line in `IMPORTERS`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from raypot.data.cards import Card
from raypot.data.importers import ase_files, npz
from raypot.data.importers.rows import BadRow, KeyLog
from raypot.structures import Structure

Importer = Callable[[Path, Card, KeyLog], Iterator[Structure | BadRow]]

IMPORTERS: dict[str, Importer] = {"ase": ase_files.read, "npz": npz.read}
ENDINGS: dict[str, str] = {".npz": "npz"}  # everything else goes to ASE


def importer_name(path: Path) -> str:
    """Return the name of the importer for a file, from its ending."""
    return ENDINGS.get(path.suffix.lower(), "ase")
