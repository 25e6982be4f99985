"""What predictions are made for, in blocks of bounded size.

Structures, `ase.Atoms`, a `Block`, a store, or the path of a store or of a structure file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from raypot.data.cards import GEOMETRY_KEYS, Card
from raypot.data.importers.rows import DEFAULT_KEYS
from raypot.data.importing import read_structures
from raypot.data.store import Store
from raypot.errors import FormatError
from raypot.structures import Block, Structure

if TYPE_CHECKING:
    from ase import Atoms

Geometry = Union[Structure, "Atoms"]
Source = Iterable[Geometry] | Geometry | Block | Store

CHUNK = 1024  # structures that are turned into columns at once
CHARGE_KEYS, SPIN_KEYS = DEFAULT_KEYS["total_charge"], DEFAULT_KEYS["spin"]


def blocks(source: Source, labels: Sequence[str] = ()) -> Iterator[Block]:
    """Return the structures of a source in columns, a bounded number at a time.

    `rows` of the blocks count the structures of the source, or are rows of the store.

    Args:
        source: structures, one or many; read once and never changed.
        labels: properties to bring along, NaN where missing.

    Raises:
        FormatError: a structure that cannot be believed.
    """
    if isinstance(source, Block):
        yield source
    elif isinstance(source, Store):
        for start, stop in source.shards():
            yield source.read(np.arange(start, stop), labels=labels)
    else:
        one = isinstance(source, Structure) or hasattr(source, "get_positions")
        for start, structures in chunks([source] if one else source):  # type: ignore[arg-type]
            yield columns(start, structures, labels)


def chunks(geometries: Iterable[Geometry]) -> Iterator[tuple[int, list[Structure]]]:
    """Yield runs of at most `CHUNK` structures, each with the number of those before it."""
    remaining, start = iter(geometries), 0
    while part := list(islice(remaining, CHUNK)):
        yield (
            start,
            [
                item if isinstance(item, Structure) else structure_from_atoms(item, start + k)
                for k, item in enumerate(part)
            ],
        )
        start += len(part)


def columns(start: int, structures: Sequence[Structure], labels: Sequence[str] = ()) -> Block:
    """Return structures in columns, with rows counted from `start`."""
    block = Block.from_structures(structures, labels)
    return replace(block, rows=block.rows + start)


def batches(block: Block, n_atoms: int) -> Iterator[Block]:
    """Cut a block into runs of structures with at most `n_atoms` atoms; larger ones go alone.

    Args:
        block: S structures.
        n_atoms: atoms of a batch.
    """
    start = 0
    while start < len(block):
        limit = block.offsets[start] + n_atoms
        stop = int(np.searchsorted(block.offsets, limit, side="right")) - 1
        stop = max(stop, start + 1)
        yield block.take(np.arange(start, stop))
        start = stop


def open_source(path: str | Path, *, needs_labels: bool = True) -> Store | Iterator[Structure]:
    """Open a store, or read a structure file with the `dataset.toml` beside it, if there is one.

    Args:
        path: the folder or URL of a store, or a file that an importer reads.
        needs_labels: whether the labels that the card speaks of must be there.

    Raises:
        MissingInput: nothing is there.
        FormatError: a file or a structure in it cannot be believed.
        StoreError: a folder that is not a whole store.
    """
    file = Path(path)
    if "://" in str(path) or file.is_dir():
        return Store.open(path)
    beside = file.parent / "dataset.toml"
    card = Card.read(beside) if beside.is_file() else Card()
    return read_structures([file], card=card if needs_labels else _without_keys(card))


def structure_from_atoms(atoms: "Atoms", index: int = 0) -> Structure:
    """Read an `ase.Atoms`, which stays as it is.

    Args:
        atoms: `info["charge"]` in e and `info["spin"]`, the multiplicity, are respected.
        index: its place among others, for messages.

    Raises:
        FormatError: not finite, no atoms, or a charge that is not a number.
    """
    return Structure(
        numbers=np.array(atoms.numbers),
        positions=np.array(atoms.positions),
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc),
        total_charge=_number(atoms.info, CHARGE_KEYS, 0.0, index),
        spin=_number(atoms.info, SPIN_KEYS, 1.0, index),
        source=("", index),
    )


def _without_keys(card: Card) -> Card:
    """Return a card that demands no key, for files that hold geometries only."""
    geometry = {name: key for name, key in card.keys.items() if name in GEOMETRY_KEYS}
    return card.model_copy(update={"keys": geometry})


def _number(info: dict[str, Any], keys: Sequence[str], default: float, index: int) -> float:
    """Return the first of `keys` that `info` holds."""
    found = next((key for key in keys if key in info), None)
    if found is None:
        return default
    value = info[found]
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"structure {index}: info[{found!r}] is {value!r}, expected a number", key=found
        ) from error
    if not np.isfinite(number):
        raise FormatError(f"structure {index}: info[{found!r}] is {number}, expected a number")
    return number
