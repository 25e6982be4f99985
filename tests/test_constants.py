"""Conversions against ASE, which takes CODATA 2014: equal to about 1e-8."""

import ase.data
import ase.units
import numpy as np
import pytest

from raypot.constants import (
    COULOMB_CONSTANT,
    DEBYE,
    GIGAPASCAL,
    SYMBOLS,
    formula,
    unit_factor,
)
from raypot.errors import ConfigError


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("eV", 1.0),
        ("hartree", ase.units.Hartree),
        ("kcal/mol", ase.units.kcal / ase.units.mol),
        ("kJ/mol/nm", ase.units.kJ / ase.units.mol / ase.units.nm),
        ("hartree/bohr", ase.units.Hartree / ase.units.Bohr),
        ("e*bohr^2", ase.units.Bohr**2),
        ("eV/angstrom^3", 1.0),
        ("kbar", 0.1 * ase.units.GPa),
        ("debye", ase.units.Debye),
        ("bohr^3", ase.units.Bohr**3),
    ],
)
def test_units_agree_with_ase(unit: str, expected: float) -> None:
    assert unit_factor(unit) == pytest.approx(expected, rel=1e-7)


def test_derived_constants_agree_with_ase() -> None:
    assert pytest.approx(ase.units.GPa, rel=1e-7) == GIGAPASCAL
    assert pytest.approx(ase.units.Debye, rel=1e-7) == DEBYE
    assert pytest.approx(14.3996454, rel=1e-7) == COULOMB_CONSTANT


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ConfigError, match="'furlong' is not known"):
        unit_factor("eV/furlong")


def test_symbols_are_those_of_ase() -> None:
    assert list(SYMBOLS) == ase.data.chemical_symbols


def test_formula_is_in_hill_order() -> None:
    assert formula(np.array([8, 6, 1, 1, 1, 6, 1, 1, 1])) == "C2H6O"
    assert formula(np.array([14, 8, 8])) == "O2Si"
