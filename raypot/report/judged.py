"""Predictions beside labels: what parity and calibration plots show.

**Shapes** M members, n labelled components of all structures of a role.
"""

from dataclasses import dataclass

import numpy as np

from raypot.data.store import Store
from raypot.ensemble.judge import judge as judge_bars
from raypot.ensemble.prediction import Prediction
from raypot.ensemble.predictor import Predictor
from raypot.structures import Block, Floats, Integers

MAX_STRUCTURES = 2000  # of one role; drawn at random from larger ones
SAME = 1.001  # ratio up to which two error bars count as equal


@dataclass(frozen=True)
class Judged:
    """One property on the rows of one role, in raypot's units.

    Args:
        name: the property; energies are `energy_per_atom`, without self energies.
        reference: labels (n,).
        predicted: means of the ensemble (n,).
        members: what each member predicts (M, n).
        spread: raw deviation between members (n,), or None for a single model.
        std: calibrated (n,), or None where nothing was calibrated.
        factor: half width of the 90 % interval over `std`.
        constant: a constant error bar, to compare with.
    """

    name: str
    reference: Floats
    predicted: Floats
    members: Floats
    spread: Floats | None = None
    std: Floats | None = None
    factor: float = float("nan")
    constant: float = float("nan")

    @property
    def error(self) -> Floats:
        """Prediction minus label (n,)."""
        return self.predicted - self.reference

    @property
    def has_own_bars(self) -> bool:
        """Whether the calibrated error bars differ from value to value."""
        return self.std is not None and bool(self.std.max() > SAME * self.std.min())

    def measures(self) -> dict[str, float]:
        """Return `rmse` and `mae`, and the measures of the error bars where there are some."""
        errors = self.error
        found = {"rmse": rms(errors), "mae": float(np.abs(errors).mean())}
        if self.std is None:
            return found
        return found | judge_bars(self.std, errors, self.factor, self.constant)

    def member_rmse(self) -> Floats:
        """Return the RMSE of each member alone (M,)."""
        return np.asarray(np.sqrt(np.square(self.members - self.reference).mean(axis=1)))


def rms(values: Floats) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def pick_rows(rows: Integers) -> Integers:
    """Return `rows`, or a fixed random part of them where there are too many for a page."""
    if len(rows) <= MAX_STRUCTURES:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MAX_STRUCTURES, replace=False))


def judge_rows(predictor: Predictor, store: Store, rows: Integers, level: str) -> list[Judged]:
    """Predict rows of a store and compare with every label that the model predicts.

    Args:
        predictor: a model or an ensemble.
        store: with the labels.
        rows: row numbers; large sets are sampled.
        level: which labels.
    """
    names = [name for name in predictor.properties if name in store.census(level)]
    block = store.read(pick_rows(rows), labels=names, level=level)
    if not names or not len(block):
        return []
    prediction = predictor.predict(block, names, members=True)
    judged = [_judge(name, predictor, block, prediction) for name in names]
    return [one for one in judged if len(one.reference)]


def _judge(name: str, predictor: Predictor, block: Block, prediction: Prediction) -> Judged:
    """Flatten one property to its labelled components; energies are taken per atom."""
    shift, size = np.zeros(()), np.ones(())
    shown = "energy_per_atom" if name == "energy" else name
    if name == "energy":
        targets = predictor.members[0].targets
        shift = targets.self_energy(block.numbers, block.offsets)
        size = block.n_atoms.astype(np.float64)
    reference = (block.labels[name] - shift) / size
    labelled = ~np.isnan(reference)

    def bars(found: dict[str, Floats]) -> Floats | None:
        return (found[name] / size)[labelled] if name in found else None

    error_model = predictor.calibration.get(shown)
    every = [prediction.values[name], *(prediction.members or {})[name]]
    predicted, *members = [((values - shift) / size)[labelled] for values in every]
    return Judged(
        name=shown,
        reference=reference[labelled],
        predicted=predicted,
        members=np.stack(members),
        spread=bars(prediction.spreads),
        std=bars(prediction.stds),
        factor=prediction.factors_90.get(name, float("nan")),
        constant=error_model.constant if error_model else float("nan"),
    )
