"""What a predictor returns: values, error bars, and on wish every member's own values.

**Shapes** M members, S structures, N atoms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raypot.ensemble.calibrate import Calibration, spread
from raypot.properties import PROPERTIES
from raypot.structures import Floats, Integers


@dataclass(frozen=True)
class Prediction:
    """Properties of S structures in raypot's units.

    Every dictionary goes from a property to an array over structures (S, ...) or atoms (N, ...),
    in the order of the structures. The stress of a structure that does not repeat in all
    directions is NaN, because it has none.

    Args:
        offsets: first atom of each structure, and the end (S + 1,).
        values: the weighted mean over members.
        stds: calibrated standard deviations; only of properties that were calibrated.
        spreads: raw standard deviations between members, not calibrated; empty for one member.
        members: property to (M, S, ...) or (M, N, ...), NaN for a member that does not predict it;
            None unless asked for.
        factors_90: property to the half width of the 90 % interval over the standard deviation.
    """

    offsets: Integers
    values: dict[str, Floats]
    stds: dict[str, Floats] = field(default_factory=dict)
    spreads: dict[str, Floats] = field(default_factory=dict)
    members: dict[str, Floats] | None = None
    factors_90: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def energy(self) -> Floats:
        """Total energies (S,) in eV."""
        return self.values["energy"]

    @property
    def forces(self) -> Floats:
        """Forces (N, 3) in eV/Å."""
        return self.values["forces"]

    @property
    def energy_std(self) -> Floats:
        """Calibrated standard deviations of the total energies (S,) in eV."""
        return self.stds["energy"]

    @property
    def forces_std(self) -> Floats:
        """Calibrated standard deviations of the force components (N, 3) in eV/Å."""
        return self.stds["forces"]

    def interval_90(self, name: str) -> tuple[Floats, Floats]:
        """Return the ends of the intervals that hold 90 % of the true values of a property."""
        half = self.factors_90[name] * self.stds[name]
        return self.values[name] - half, self.values[name] + half

    def of(self, index: int) -> dict[str, Floats]:
        """Return the values of one structure, and its standard deviations as `<name>_std`."""
        named = self.values | {f"{name}_std": std for name, std in self.stds.items()}
        return {key: np.asarray(value[self._rows(key, index)]) for key, value in named.items()}

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        return (self.of(index) for index in range(len(self)))

    def _rows(self, key: str, index: int) -> slice | int:
        if PROPERTIES[key.removesuffix("_std")].level == "structure":
            return index
        return slice(self.offsets[index], self.offsets[index + 1])


def combine(
    members: Mapping[str, Floats],
    weights: Mapping[str, Floats],
    offsets: Integers,
    calibration: Mapping[str, Calibration],
) -> Prediction:
    """Average the members of an ensemble and turn their spread into uncertainty.

    Energies are calibrated per atom: std(E) = n_atoms * sigma(spread(E) / n_atoms).

    Args:
        members: property to (M, S, ...) or (M, N, ...); all NaN for a member that lacks it.
        weights: property to the weights (M,): sum one, zero for a member that lacks it.
        offsets: first atom of each structure, and the end (S + 1,).
        calibration: property (`energy_per_atom` for energies) to its error model.
    """
    n_atoms = np.diff(offsets).astype(np.float64)
    values, stds, spreads, factors = {}, {}, {}, {}
    for name, stacked in members.items():
        inside = weights[name] > 0
        share, stacked_inside = weights[name][inside], stacked[inside]
        values[name] = np.tensordot(share, stacked_inside, 1)
        between = spread(stacked_inside, share)
        if len(share) > 1:
            spreads[name] = between
        error_model = calibration.get("energy_per_atom" if name == "energy" else name)
        if error_model is not None:
            size = n_atoms if name == "energy" else np.ones(())
            stds[name] = size * error_model.std(between / size)
            factors[name] = error_model.factor
    return Prediction(offsets, values, stds, spreads, dict(members), factors)


def join(parts: Sequence[Prediction]) -> Prediction:
    """Put predictions of parts of the structures one after the other.

    Args:
        parts: at least one, of the same properties.
    """
    first = parts[0]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    members = None
    if first.members is not None:
        members = _joined([part.members or {} for part in parts], axis=1)
    return Prediction(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        values=_joined([part.values for part in parts]),
        stds=_joined([part.stds for part in parts]),
        spreads=_joined([part.spreads for part in parts]),
        members=members,
        factors_90=first.factors_90,
    )


def _joined(parts: Sequence[Mapping[str, Floats]], axis: int = 0) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}
