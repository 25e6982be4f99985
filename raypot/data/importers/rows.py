"""From what a file says about one structure to a `Structure` in raypot's units.

Labels are looked for in this order: the key that the card names, `REF_*`, the results of an ASE
calculator, the property's own name, its aliases in `properties.py`. The first that is there counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from raypot.constants import formula
from raypot.data.cards import LENGTH, STRUCTURE_KEYS, VIRIAL_KEYS, Card
from raypot.errors import FormatError, ShapeMismatch
from raypot.properties import PROPERTIES, Property
from raypot.structures import Booleans, Floats, Integers, Structure

DEFAULT_KEYS: dict[str, tuple[str, ...]] = {
    "total_charge": ("total_charge", "charge", "Q"),
    "spin": ("spin", "multiplicity", "mult", "total_spin"),
    "record": (),
    "config_type": ("config_type",),
    "weight": ("config_weight", "weight"),
}
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # xx yy zz yz xz xy, as ASE orders them


class BadRow(NamedTuple):
    """A structure that cannot be believed."""

    source: tuple[str, int]  # file and index
    reason: str


class Place(NamedTuple):
    """One of the dictionaries in which a file keeps values of a structure."""

    name: str  # for the report; empty where there is only one
    kind: Literal["calculator", "structure", "atom", "any"]
    values: Mapping[str, Any]


class RawRow(NamedTuple):
    """One structure as the file says it, before units, signs and checks."""

    numbers: Integers
    positions: Floats
    cell: Floats
    pbc: Booleans
    places: tuple[Place, ...]
    source: tuple[str, int]


@dataclass
class KeyLog:
    """What importers saw: which keys were used, which exist, what else is worth saying."""

    used: dict[str, Counter[str]] = field(default_factory=dict)
    present: dict[str, None] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def use(self, name: str, key: str) -> None:
        """Count that `name` was read from `key`."""
        self.used.setdefault(name, Counter())[key] += 1


def to_structure(row: RawRow, card: Card, log: KeyLog) -> Structure | BadRow:
    """Apply the card to one raw structure.

    Args:
        row: in the units and signs of the source.
        card: keys, units, signs and overrides.
        log: gains the keys that were used.

    Returns:
        The structure in raypot's units, or the reason why there is none.
    """
    for place in row.places:
        log.present.update(dict.fromkeys(place.values))
    try:
        return _build(row, card, log)
    except (FormatError, ShapeMismatch) as error:
        file, index = row.source
        return BadRow(row.source, str(error).removeprefix(f"{file}, structure {index}: "))


def _build(row: RawRow, card: Card, log: KeyLog) -> Structure:
    length = card.unit(LENGTH)
    pbc = row.pbc if card.pbc is None else np.broadcast_to(np.array(card.pbc), (3,))
    bare = Structure(
        numbers=row.numbers,
        positions=np.asarray(row.positions, dtype=np.float64) * length,
        cell=np.asarray(row.cell, dtype=np.float64) * length,
        pbc=pbc,
        source=row.source,
    )
    facts = {name: _fact(name, row, card, log) for name in STRUCTURE_KEYS}
    charge = facts["total_charge"] if card.total_charge is None else card.total_charge
    return Structure(
        numbers=bare.numbers,
        positions=bare.positions,
        cell=bare.cell,
        pbc=bare.pbc,
        total_charge=_number("total_charge", charge, 0.0),
        spin=_number("spin", facts["spin"], 1.0),
        weight=_number("weight", facts["weight"], 1.0),
        labels=dict(_labels(row, bare, card, log)),
        record=_record(row, bare, card, facts["record"]),
        config_type="" if facts["config_type"] is None else str(facts["config_type"]),
        source=row.source,
    )


def _labels(row: RawRow, bare: Structure, card: Card, log: KeyLog) -> Iterator[tuple[str, Floats]]:
    for name, prop in PROPERTIES.items():
        found = _find(prop, row.places, card.keys.get(name))
        if found is None:
            continue
        place, key, raw = found
        value = _shaped(prop, raw, len(bare))
        if np.isnan(value).all():
            continue
        if not np.isfinite(value).all():
            raise FormatError(f"{name}: {key!r} is partly NaN or infinite")
        value = value * card.unit(name) * card.signs.get(name, 1)
        if name == "stress":
            if not bare.pbc.all():
                log.notes["stress was left out where not all three directions repeat"] += 1
                continue
            if key in VIRIAL_KEYS:
                value = -value / abs(np.linalg.det(bare.cell))
        log.use(name, f"{place}.{key}" if place else key)
        yield name, value


def _find(
    prop: Property, places: Iterable[Place], chosen: str | None
) -> tuple[str, str, Any] | None:
    """Return place, key and value of a label: the first that the lookup order meets."""
    for key, kinds in _candidates(prop, chosen):
        for place in places:
            if place.kind in kinds and place.values.get(key) is not None:
                return place.name, key, place.values[key]
    return None


def _candidates(prop: Property, chosen: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield keys with the kinds of place in which each counts, in the order of lookup."""
    if chosen is not None:
        if chosen:
            yield chosen, ("calculator", "structure", "atom", "any")
        return
    own = (prop.level, "any")
    for alias in prop.aliases:
        if alias.startswith("REF_"):
            yield alias, own
    yield prop.name, ("calculator",)
    yield prop.name, own
    for alias in prop.aliases:
        if not alias.startswith("REF_"):
            yield alias, own


def _shaped(prop: Property, raw: Any, n_atoms: int) -> Floats:
    """Return a value in the shape of its property; axes of length one do not matter."""
    try:
        value: Floats = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{prop.name}: {raw!r:.60} is not a number") from error
    expected = (n_atoms, *prop.shape) if prop.level == "atom" else prop.shape
    if prop.name == "stress" and value.shape == (6,):
        return np.take(value, VOIGT)
    if prop.shape == (3, 3) and value.shape == (9,):
        return value.reshape(3, 3)
    if _without_ones(value.shape) != _without_ones(expected):
        raise ShapeMismatch(f"{prop.name}: has shape {value.shape}, expected {expected}")
    return value.reshape(expected)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _fact(name: str, row: RawRow, card: Card, log: KeyLog) -> Any:
    """Return what the source says about the structure as a whole, or None."""
    chosen = card.keys.get(name)
    keys = DEFAULT_KEYS[name] if chosen is None else (chosen,)
    for key in keys:
        for place in row.places:
            allowed = ("structure", "any") if chosen is None else ("structure", "any", "calculator")
            if place.kind in allowed and place.values.get(key) is not None:
                log.use(name, f"{place.name}.{key}" if place.name else key)
                return place.values[key]
    return None


def _number(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    try:
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{name}: {value!r:.60} is not a number") from error
    if number.size != 1 or not np.isfinite(number).all():
        raise FormatError(f"{name}: {value!r:.60}, expected one finite number")
    return float(number.reshape(()))


def _record(row: RawRow, bare: Structure, card: Card, found: Any) -> str:
    if card.record is None:
        return "" if found is None else str(found)
    pattern = card.record.replace("{file}", row.source[0])
    return pattern.replace("{formula}", formula(bare.numbers))
