"""Numpy `.npz` files in the style of MD17: an array a quantity, structures along the first axis."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypot.data.cards import Card
from raypot.data.importers.rows import BadRow, KeyLog, Place, RawRow, to_structure
from raypot.errors import FormatError
from raypot.structures import Structure

KEYS: dict[str, tuple[str, ...]] = {
    "positions": ("positions", "pos", "R", "coords", "coordinates", "coord"),
    "numbers": ("numbers", "atomic_numbers", "z", "Z", "nuclear_charges", "species"),
    "cell": ("cell", "unit_cell", "lattice", "box"),
    "pbc": ("pbc",),
}
Arrays = Mapping[str, NDArray[Any]]


def read(path: Path, card: Card, log: KeyLog) -> Iterator[Structure | BadRow]:
    """Read the structures of an `.npz` file.

    Positions are (S, N, 3); atomic numbers (N,) or (S, N), zero where a smaller structure is
    padded; cell (3, 3) or (S, 3, 3); every other array whose first axis has length S holds labels.
    Without a `pbc` array nothing repeats.

    Args:
        path: the file.
        card: keys, units, signs.
        log: gains the keys that were used.

    Raises:
        FormatError: not an `.npz` file, objects inside, or arrays that do not fit together.
    """
    arrays = _load(path)
    positions, position_key = _geometry("positions", arrays, card, path)
    numbers, number_key = _geometry("numbers", arrays, card, path)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise FormatError(f"{path}: {position_key} has shape {positions.shape}, expected (S, N, 3)")
    n_structures, n_atoms = positions.shape[:2]
    numbers = _per_structure(path, number_key, numbers, n_structures, (n_atoms,))
    cell = _optional("cell", arrays, card, path, n_structures, (3, 3))
    pbc = _optional("pbc", arrays, card, path, n_structures, (3,))
    if cell.any() and card.pbc is None and not _has("pbc", arrays, card):
        log.notes["a cell without pbc was read as not repeating; set pbc in the card"] += 1
    taken = {position_key, number_key}
    values = {
        key: array
        for key, array in arrays.items()
        if key not in taken and array.shape[:1] == (n_structures,)
    }
    for index in range(n_structures):
        real = numbers[index] != 0
        row = RawRow(
            numbers=numbers[index][real],
            positions=positions[index][real],
            cell=cell[index],
            pbc=pbc[index],
            places=(Place("", "any", _of_structure(values, index, real)),),
            source=(path.name, index),
        )
        yield to_structure(row, card, log)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array; pickled objects are refused by numpy before they are loaded."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"{path}: not an .npz file of plain arrays ({error}); write it again with numpy.savez",
            path=str(path),
        ) from error


def _key(name: str, arrays: Arrays, card: Card) -> str | None:
    keys = (card.keys[name],) if name in card.keys else KEYS[name]
    return next((key for key in keys if key in arrays), None)


def _has(name: str, arrays: Arrays, card: Card) -> bool:
    return _key(name, arrays, card) is not None


def _geometry(name: str, arrays: Arrays, card: Card, path: Path) -> tuple[NDArray[Any], str]:
    key = _key(name, arrays, card)
    if key is None:
        wanted = card.keys.get(name) or ", ".join(KEYS[name])
        raise FormatError(
            f"{path}: no array of {name} ({wanted}); it has {', '.join(arrays)}; name it under "
            "[keys] in the card",
            path=str(path),
        )
    return arrays[key], key


def _optional(
    name: str, arrays: Arrays, card: Card, path: Path, n_structures: int, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return an array of the geometry, one value a structure; zero where there is none."""
    key = _key(name, arrays, card)
    if key is None and name in card.keys:
        _geometry(name, arrays, card, path)
    if key is None:
        return np.zeros((n_structures, *shape))
    return _per_structure(path, key, arrays[key], n_structures, shape)


def _per_structure(
    path: Path, key: str, array: NDArray[Any], n_structures: int, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return (S, *shape) from that, or from one value that all structures share."""
    if array.shape not in (shape, (n_structures, *shape)):
        raise FormatError(
            f"{path}: {key} has shape {array.shape}, expected {(n_structures, *shape)} or {shape}",
            path=str(path),
        )
    return np.broadcast_to(array, (n_structures, *shape))


def _of_structure(values: Arrays, index: int, real: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the values of one structure, without those of padded atoms."""
    return {
        key: array[index][real] if array.shape[1:2] == real.shape else array[index]
        for key, array in values.items()
    }
