"""The dataset card: what a source means by its keys, units and signs.

A card is a `dataset.toml` beside the raw files. Everything in it is optional; without one the
importers look for the usual names and believe that the numbers are in raypot's units.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from raypot.config import Config, build, did_you_mean, read_toml
from raypot.constants import COULOMB_CONSTANT, unit_factor
from raypot.errors import ConfigError
from raypot.properties import PROPERTIES

GEOMETRY_KEYS = ("numbers", "positions", "cell", "pbc")
STRUCTURE_KEYS = ("total_charge", "spin", "record", "config_type", "weight")
LENGTH = "length"
CHARGE_UNIT = re.compile(r"(^|[*/· ])e(\^2|²|[*/· ]|$)")
VIRIAL_KEYS = frozenset(
    f"{prefix}{word}" for prefix in ("", "REF_", "DFT_", "dft_") for word in ("virial", "virials")
)


def _known(names: dict[str, object], allowed: tuple[str, ...]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{name!r} is unknown{did_you_mean(name, list(allowed))}")


def _check_keys(keys: dict[str, str]) -> dict[str, str]:
    _known(dict(keys), (*PROPERTIES, *STRUCTURE_KEYS, *GEOMETRY_KEYS))
    return keys


def _check_units(units: dict[str, str]) -> dict[str, str]:
    _known(dict(units), (*PROPERTIES, LENGTH))
    for unit in units.values():
        try:
            unit_factor(unit)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    return units


def _check_signs(signs: dict[str, int]) -> dict[str, int]:
    _known(dict(signs), tuple(PROPERTIES))
    if not set(signs.values()) <= {-1, 1}:
        raise ValueError("every sign is 1 or -1")
    return signs


def _check_precise(names: tuple[str, ...]) -> tuple[str, ...]:
    _known(dict.fromkeys(names), tuple(PROPERTIES))
    return names


class Card(Config):
    """Origin and meaning of a data set.

    Args:
        name: short name of the set.
        description: what it holds, in a sentence.
        origin: where it comes from, or the command that makes it.
        license: terms of use.
        level_of_theory: the reference method.
        citation: what to cite.
        keys: property (or `total_charge`, `spin`, `record`, `config_type`, `weight`, `numbers`,
            `positions`, `cell`, `pbc`) to its key in the source; an empty key leaves it out.
        units: property or `length` to the unit of the source; raypot's unit by default.
        signs: property to 1 or -1; -1 turns gradients into forces, for example.
        total_charge: charge of every structure in e, whatever the source says.
        pbc: whether every structure repeats, along all lattice vectors or along each of the
            three, whatever the source says.
        record: record of every structure; `{file}` and `{formula}` stand for the file's name and
            the Hill formula.
        precise: labels stored in float64; energies always are.
    """

    name: str = ""
    description: str = ""
    origin: str = ""
    license: str = ""
    level_of_theory: str = ""
    citation: str = ""
    keys: Annotated[dict[str, str], AfterValidator(_check_keys)] = Field(default_factory=dict)
    units: Annotated[dict[str, str], AfterValidator(_check_units)] = Field(default_factory=dict)
    signs: Annotated[dict[str, int], AfterValidator(_check_signs)] = Field(default_factory=dict)
    total_charge: float | None = None
    pbc: bool | tuple[bool, bool, bool] | None = None
    record: str | None = None
    precise: Annotated[tuple[str, ...], AfterValidator(_check_precise)] = ()

    @classmethod
    def read(cls, path: str | Path) -> "Card":
        """Read a card from a TOML file, or from `dataset.toml` in a folder.

        Raises:
            MissingInput: no such file.
            ConfigError: not TOML, or an unknown key, property, unit or sign.
        """
        path = Path(path)
        file = path / "dataset.toml" if path.is_dir() else path
        return build(cls, read_toml(file), str(file))

    def unit(self, name: str) -> float:
        """Return the factor from the source's unit of `name` to raypot's.

        A polarizability in charge² length²/energy (`e*angstrom^2/v`, `e^2*bohr^2/hartree`) becomes
        a volume: it is divided by 4 pi epsilon_0.
        """
        if name not in self.units:
            return 1.0
        unit = self.units[name]
        is_charged = name == "polarizability" and CHARGE_UNIT.search(unit.strip().lower())
        return unit_factor(unit) * (COULOMB_CONSTANT if is_charged else 1.0)
