"""Weights of loss terms over time: pure functions of the progress, with no state to resume.

In a run file a weight is a number or a table whose `by` names the schedule:

    weight = { start = 100.0, end = 1.0, by = "epoch", epochs = 50 }
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from raypot.config import Config, lookup


class Progress(NamedTuple):
    """Where a run stands.

    Args:
        epoch: epochs that are over; 0 in the first.
        n_epochs: epochs of the whole run.
        step: optimizer steps that are over.
        learning_rate: the rate in force, without the factor of the warm-up.
        initial_learning_rate: the rate at the start, without the factor of the warm-up.
    """

    epoch: int
    n_epochs: int
    step: int
    learning_rate: float
    initial_learning_rate: float


class _Ramp(Config):
    """What every schedule with two ends has."""

    start: float = Field(ge=0, description="weight at the start")
    end: float = Field(ge=0, description="weight at the end")

    def _between(self, fraction: float) -> float:
        """Go from `start` (0) to `end` (1) in a straight line; both ends are met exactly."""
        if fraction >= 1:
            return self.end
        return self.start + max(fraction, 0.0) * (self.end - self.start)


class EpochRamp(_Ramp):
    """Go linearly from `start` in epoch 0 to `end` in epoch `epochs`, then stay.

    weight(epoch) = start + (end - start) min(epoch / epochs, 1), the same for all steps of an
    epoch. Without `epochs` the last epoch of the run is the first one with weight `end`.
    """

    by: Literal["epoch"] = "epoch"
    epochs: int | None = Field(
        default=None, ge=1, description="first epoch with the weight `end`; default the last one"
    )

    def weight(self, progress: Progress) -> float:
        """Return the weight in force."""
        epochs = self.epochs or max(progress.n_epochs - 1, 1)
        return self._between(progress.epoch / epochs)


class LearningRateRamp(_Ramp):
    """Follow the learning rate: `start` at the initial rate, `end` at `end_learning_rate`.

    weight = start + (end - start) (lr - lr_0) / (lr_end - lr_0), linear in the rate, so that
    halving the rate once already goes about half of the way.

    **Source** Zhang, Xia and Jiang, J. Chem. Phys. 156, 114801 (2022), the REANN program.
    """

    by: Literal["learning_rate"] = "learning_rate"
    end_learning_rate: float = Field(
        default=1e-6, gt=0, description="learning rate at which the weight is `end`"
    )

    def weight(self, progress: Progress) -> float:
        """Return the weight in force; `start` where the rate cannot fall any more."""
        fall = progress.initial_learning_rate - self.end_learning_rate
        if fall <= 0:
            return self.start
        return self._between((progress.initial_learning_rate - progress.learning_rate) / fall)


WEIGHT_SCHEDULES: dict[str, type[EpochRamp] | type[LearningRateRamp]] = {
    "epoch": EpochRamp,
    "learning_rate": LearningRateRamp,
}


def _read_weight(value: Any) -> Any:
    """Turn the table form into its schedule; check a plain number."""
    if isinstance(value, Mapping):
        kind = lookup(str(value.get("by", "epoch")), WEIGHT_SCHEDULES, "by")
        return kind.model_validate(value)
    if isinstance(value, _Ramp):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"expected a number >= 0 or a table {{ start = , end = , by = }}, got {value!r}"
        )
    return float(value)


Weight = Annotated[float | EpochRamp | LearningRateRamp, BeforeValidator(_read_weight)]


def weight_at(weight: float | EpochRamp | LearningRateRamp, progress: Progress) -> float:
    """Return the value of a weight; a plain number stays what it is."""
    return weight if isinstance(weight, float) else weight.weight(progress)
