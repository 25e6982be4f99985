"""Conversion factors into raypot's units, and the chemical elements.

Inside raypot every number is in eV, Å, e and amu (dipole e·Å, quadrupole e·Å², polarizability Å³,
stress eV/Å³). Importers and engines are the only places that convert.

**Source** CODATA 2018 (Tiesinga et al., Rev. Mod. Phys. 93, 025010, 2021); atomic masses from the
IUPAC values that ASE ships.
"""

import re
from functools import cache

import numpy as np

from raypot.errors import ConfigError

HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å
AVOGADRO = 6.02214076e23  # 1/mol
ELEMENTARY_CHARGE = 1.602176634e-19  # C
KILOJOULE_PER_MOLE = 1e3 / AVOGADRO / ELEMENTARY_CHARGE  # eV
KILOCALORIE_PER_MOLE = 4.184 * KILOJOULE_PER_MOLE  # eV
GIGAPASCAL = 1e9 * 1e-30 / ELEMENTARY_CHARGE  # eV/Å³
COULOMB_CONSTANT = HARTREE * BOHR  # eV·Å/e²: 14.3996...
DEBYE = 0.20819433442462576  # e·Å: 1e-21/c C·m
BOLTZMANN = 8.617333262145179e-5  # eV/K

UNITS: dict[str, float] = {
    "1": 1.0,
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": HARTREE,
    "ha": HARTREE,
    "rydberg": HARTREE / 2,
    "kcal/mol": KILOCALORIE_PER_MOLE,
    "kj/mol": KILOJOULE_PER_MOLE,
    "angstrom": 1.0,
    "å": 1.0,
    "ang": 1.0,
    "bohr": BOHR,
    "nm": 10.0,
    "e": 1.0,
    "debye": DEBYE,
    "v": 1.0,  # volt = eV/e
    "gpa": GIGAPASCAL,
    "kbar": GIGAPASCAL / 10,
    "amu": 1.0,
}

SYMBOLS: tuple[str, ...] = tuple(
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As "
    "Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd "
    "Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am "
    "Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og".split()
)
ATOMIC_NUMBERS: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS)}
MAX_ATOMIC_NUMBER = len(SYMBOLS) - 1


@cache
def unit_factor(unit: str) -> float:
    """Return the number that one `unit` is in raypot's units.

    A unit is a product of the names in `UNITS` with `*`, `/` and `^n`, for example
    `hartree/bohr`, `kcal/mol/angstrom`, `e*bohr^2`. `kcal/mol` and `kJ/mol` are one name each.

    Raises:
        ConfigError: the unit is not known.
    """
    text = unit.strip().lower().replace("·", "*").replace("**", "^").replace("²", "^2")
    text = text.replace("³", "^3").replace(" ", "*")
    text = text.replace("kcal/mol", "kcal_mol").replace("kj/mol", "kj_mol")
    factor, sign = 1.0, 1.0
    for token in re.split(r"([*/])", text):
        if token in "*/":
            sign = 1.0 if token == "*" else -1.0
            continue
        name, _, power = token.partition("^")
        base = UNITS.get(name.replace("_", "/"))
        if base is None or (power and not power.lstrip("-").isdigit()):
            raise ConfigError(
                f"unit {unit!r}: {name!r} is not known; known are {', '.join(sorted(UNITS))}, "
                "joined by * / and ^n",
                unit=unit,
            )
        factor *= base ** (sign * int(power or 1))
    return factor


def formula(numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> str:
    """Return the Hill formula of the atomic `numbers` (N), for example `C2H6O`."""
    kinds, counts = np.unique(numbers, return_counts=True)
    count_of = {SYMBOLS[kind]: int(count) for kind, count in zip(kinds, counts, strict=True)}
    first = [symbol for symbol in ("C", "H") if "C" in count_of and symbol in count_of]
    order = first + sorted(set(count_of) - set(first))
    return "".join(s + (str(count_of[s]) if count_of[s] > 1 else "") for s in order)
