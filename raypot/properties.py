"""The property table: whatever is read, predicted, weighted or plotted has a row here.

Units are raypot's own. `parity` is the sign under inversion of the geometry. Aliases are the long
names of other programs; only importers look at them, in the order given.
"""

from dataclasses import dataclass
from typing import Literal

from raypot.errors import ConfigError


@dataclass(frozen=True)
class Property:
    """One row of the table.

    Args:
        name: the word used everywhere in raypot.
        level: what one value belongs to.
        shape: the shape of one value; () for a scalar.
        unit: raypot's unit.
        parity: +1 or -1, the sign under inversion.
        precise: stored in float64, because its values are large against their differences.
        report_unit: the unit of tables and plots.
        report_factor: report unit per raypot unit.
        aliases: names that other programs give to it.
    """

    name: str
    level: Literal["structure", "atom"]
    shape: tuple[int, ...]
    unit: str
    parity: int = 1
    precise: bool = False
    report_unit: str = ""
    report_factor: float = 1.0
    aliases: tuple[str, ...] = ()


_ROWS = (
    Property(
        "energy", "structure", (), "eV", precise=True, report_unit="meV", report_factor=1e3,
        aliases=("REF_energy", "DFT_energy", "dft_energy", "total_energy", "TotEnergy", "E",
                 "energies", "energy_xtb", "Energy"),
    ),
    Property(
        "forces", "atom", (3,), "eV/Å", parity=-1, report_unit="meV/Å", report_factor=1e3,
        aliases=("REF_forces", "DFT_forces", "dft_forces", "force", "F", "forces_xtb", "Forces"),
    ),
    Property(
        "stress", "structure", (3, 3), "eV/Å³", report_unit="GPa", report_factor=160.2176634,
        aliases=("REF_stress", "DFT_stress"),
    ),
    Property(
        "charges", "atom", (), "e", report_unit="me", report_factor=1e3,
        aliases=("REF_charges", "partial_charges", "mbis_charges", "initial_charges", "q"),
    ),
    Property(
        "dipole", "structure", (3,), "e·Å", parity=-1, report_unit="me·Å", report_factor=1e3,
        aliases=("REF_dipole", "dipole_moment", "scf_dipole"),
    ),
    Property(
        "quadrupole", "structure", (3, 3), "e·Å²", report_unit="e·Å²",
        aliases=("REF_quadrupole", "quadrupole_moment", "scf_quadrupole"),
    ),
    Property(
        "polarizability", "structure", (3, 3), "Å³", report_unit="Å³",
        aliases=("REF_polarizability", "POL"),
    ),
)  # fmt: skip

PROPERTIES: dict[str, Property] = {row.name: row for row in _ROWS}


def property_named(name: str) -> Property:
    """Return the row of `name`.

    Raises:
        ConfigError: there is no such property.
    """
    if name not in PROPERTIES:
        raise ConfigError(
            f"property {name!r}: unknown; known are {', '.join(PROPERTIES)}", name=name
        )
    return PROPERTIES[name]
