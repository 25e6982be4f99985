"""The ensemble as an engine of other programs: an ASE calculator.

Forces and stress are exact derivatives of the ensemble's energy, because the weights of the
members are constant.

**Shapes** M members, N atoms.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)

from raypot.ensemble.predictor import Predictor
from raypot.ensemble.sources import CHARGE_KEYS, SPIN_KEYS
from raypot.structures import Floats

if TYPE_CHECKING:
    from ase import Atoms

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx yy zz yz xz xy


class RaypotCalculator(Calculator):  # type: ignore[misc]
    """Energies, forces, stress, charges and dipole for ASE, with error bars.

    `results` holds beside ASE's own keys `energy_std`, `forces_std`, ... (calibrated), and the same
    under the names of other programs: `energy_var`, `forces_var`, `energy_comm`, `forces_comm` as
    MACE, `energy_uncertainty`, `forces_uncertainty`, `energy_ensemble`, `forces_ensemble` as apax.
    The charge of a structure is `atoms.info["charge"]`, its multiplicity `atoms.info["spin"]`.

    Args:
        predictor: the model.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "forces", "stress", "charges", "dipole",
    ]  # fmt: skip

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        known = {*predictor.properties, "free_energy" if "energy" in predictor.properties else ""}
        self.implemented_properties = [  # type: ignore[misc]
            name for name in type(self).implemented_properties if name in known
        ]

    def check_state(self, atoms: "Atoms", tol: float = 1e-15) -> list[str]:
        """List what changed since the last calculation, charge and spin included."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and _state(self.atoms.info) != _state(atoms.info):
            changes.append("info")
        return changes

    def calculate(
        self,
        atoms: "Atoms | None" = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything that the model gives for `atoms` into `results`.

        Raises:
            PropertyNotImplementedError: stress of a structure that does not repeat everywhere.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        is_bulk = bool(self.atoms.pbc.all())
        if "stress" in properties and not is_bulk:
            raise PropertyNotImplementedError(
                "stress: needs a structure that repeats in all directions, this one has pbc = "
                f"{self.atoms.pbc.tolist()}"
            )
        names = [name for name in self.predictor.properties if name != "stress" or is_bulk]
        prediction = self.predictor.predict([self.atoms], names, members=True)
        self.results = results_of(prediction.of(0), _members_of_one(prediction.members, names))


def results_of(values: dict[str, Floats], members: dict[str, Floats]) -> dict[str, Any]:
    """Name the prediction for one structure as ASE, MACE and apax do.

    Args:
        values: property, or property and `_std`, to its value.
        members: property to the values of every member (M, ...).
    """
    results: dict[str, Any] = {key: _as_ase(key, value) for key, value in values.items()}
    if "energy" in results:
        results["free_energy"] = results["energy"]
    for name in ("energy", "forces"):
        if name not in values:
            continue
        results[f"{name}_comm"] = results[f"{name}_ensemble"] = members[name]
        if f"{name}_std" in results:
            results[f"{name}_uncertainty"] = results[f"{name}_std"]
            results[f"{name}_var"] = results[f"{name}_std"] ** 2
    return results


def to_voigt(stress: Floats) -> Floats:
    """Return the six components xx, yy, zz, yz, xz, xy of a symmetric (3, 3)."""
    return stress[VOIGT]


def _as_ase(key: str, value: Floats) -> Any:
    if key.startswith("stress"):
        return to_voigt(value)
    return float(value) if value.ndim == 0 else value


def _members_of_one(members: dict[str, Floats] | None, names: Sequence[str]) -> dict[str, Floats]:
    """Drop the axis over structures of what belongs to the one structure."""
    found = members or {}
    return {name: found[name][:, 0] if name == "energy" else found[name] for name in names}


def _state(info: dict[str, Any]) -> list[Any]:
    return [info.get(key) for key in (*CHARGE_KEYS, *SPIN_KEYS)]
