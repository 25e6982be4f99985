"""Labels from a reference method: semiempirical tight binding through tblite.

Dipole and quadrupole belong to the origin of the coordinates. The quadrupole is the traceless
tensor Q_ab = sum_n q_n (3 r_a r_b - r^2 delta_ab) / 2, continuous charge included.

**Shapes** N atoms.

**Source** GFN1-xTB: Grimme, Bannwarth & Shushkov, J. Chem. Theory Comput. 13, 1989 (2017).
GFN2-xTB: Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from dataclasses import replace
from typing import Any

import numpy as np

from raypot.config import did_you_mean
from raypot.constants import BOHR, HARTREE
from raypot.errors import ConfigError, LabelError, MissingExtra
from raypot.structures import Floats, Structure

METHODS = {"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB"}

# Tightness of the self-consistent cycle relative to tblite's default. Forces of distorted ethanol
# then miss finite differences of the energy by 2e-6 eV/Å; at the default by 4e-5.
ACCURACY = 0.01


def label(structure: Structure, method: str = "gfn2") -> Structure:
    """Return `structure` with energy, forces, charges, dipole and quadrupole of `method`.

    Every structure starts from a fresh electron density, so that its labels depend on its
    geometry alone and not on what was labelled before.

    Args:
        structure: a molecule or ion; its total charge and spin are used.
        method: a key of `METHODS`.

    Raises:
        MissingExtra: tblite is not installed.
        ConfigError: no such method.
        LabelError: periodic, or the self-consistent cycle did not converge.
    """
    try:
        result = _open_calculator(structure, method).singlepoint()
    except RuntimeError as error:
        raise LabelError(
            f"{structure.where}: {METHODS[method]} failed: {error}; look at the geometry, "
            "the total charge and the spin"
        ) from error
    labels = {
        "energy": result["energy"] * HARTREE,
        "forces": -result["gradient"] * (HARTREE / BOHR),
        "charges": result["charges"],
        "dipole": result["dipole"] * BOHR,
        "quadrupole": _full_tensor(result["quadrupole"]) * BOHR**2,
    }
    return replace(structure, labels={**structure.labels, **labels})


def _open_calculator(structure: Structure, method: str) -> Any:
    """Build the tblite calculator of a structure; see `label` for what is raised."""
    try:
        from tblite.interface import Calculator
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "data label: tblite is not installed; install it with `pip install raypot[label]`"
        ) from error

    if method not in METHODS:
        raise ConfigError(f"method {method!r}: unknown{did_you_mean(method, METHODS)}")
    if structure.pbc.any():
        raise LabelError(
            f"{structure.where}: is periodic, the reference methods label molecules; "
            "remove the cell or label it with another program"
        )
    calculator = Calculator(
        METHODS[method],
        structure.numbers,
        structure.positions / BOHR,
        charge=structure.total_charge,
        uhf=round(structure.spin) - 1,
    )
    calculator.set("verbosity", 0)
    calculator.set("accuracy", ACCURACY)
    return calculator


def _full_tensor(packed: Floats) -> Floats:
    """Return the symmetric (3, 3) of tblite's order xx xy yy xz yz zz."""
    return np.asarray(packed)[[[0, 1, 3], [1, 2, 4], [3, 4, 5]]]
