"""Learning rates over a run, and when to stop it: pure functions from values to a decision."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from raypot.config import Config


class RateState(NamedTuple):
    """What a schedule remembers; the constant and the cosine leave it alone.

    Args:
        scale: factor of the initial rate.
        best: lowest value so far; None before the first.
        n_bad: epochs since then, or since the last cut.
    """

    scale: float = 1.0
    best: float | None = None
    n_bad: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict()

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "RateState":
        """Undo `to_json`."""
        return cls(**tree)


class ConstantRate(Config):
    """Keep the initial rate; the base of the other schedules.

    The rate in force is the plain rate times min((step + 1) / (warmup_steps + 1), 1).
    """

    warmup_steps: int = Field(
        default=0, ge=0, description="steps over which the rate rises linearly from almost zero"
    )

    def rate(
        self, initial: float, step: int, n_steps: int, state: RateState, floor: float = 0.0
    ) -> float:
        """Return the learning rate of a step, warm-up included.

        Args:
            initial: rate at the start.
            step: steps that are over.
            n_steps: of the whole run.
            state: of the schedule.
            floor: lowest plain rate; the constant has none.
        """
        plain = self.plain_rate(initial, step, n_steps, state, floor)
        return plain * min((step + 1) / (self.warmup_steps + 1), 1.0)

    def plain_rate(
        self, initial: float, step: int, n_steps: int, state: RateState, floor: float = 0.0
    ) -> float:
        """Return the learning rate of a step as if there were no warm-up."""
        del step, n_steps, state, floor
        return initial

    def advance(self, state: RateState, value: float) -> RateState:
        """Return the state after an epoch that was judged by `value`, lower is better."""
        del value
        return state


class CosineRate(ConstantRate):
    """Fall from the initial rate to the floor along half a cosine, after the warm-up.

    **Source** Loshchilov and Hutter, arXiv:1608.03983, eq. 5 without restarts.
    """

    def plain_rate(
        self, initial: float, step: int, n_steps: int, state: RateState, floor: float = 0.0
    ) -> float:
        """Return the learning rate of a step as if there were no warm-up."""
        del state
        floor = min(floor, initial)
        length = max(n_steps - self.warmup_steps, 1)
        done = min(max(step - self.warmup_steps, 0) / length, 1.0)
        share = 0.5 * (1 + math.cos(math.pi * done))
        return initial * share + floor * (1 - share)


class PlateauRate(ConstantRate):
    """Cut the rate when the value has not improved for `patience` epochs."""

    factor: float = Field(default=0.5, gt=0, lt=1, description="factor of each cut")
    patience: int = Field(default=15, ge=1, description="epochs without improvement before a cut")
    threshold: float = Field(
        default=1e-3, ge=0, lt=1, description="relative improvement that counts"
    )

    def plain_rate(
        self, initial: float, step: int, n_steps: int, state: RateState, floor: float = 0.0
    ) -> float:
        """Return the learning rate of a step as if there were no warm-up."""
        del step, n_steps
        return max(initial * state.scale, min(floor, initial))

    def advance(self, state: RateState, value: float) -> RateState:
        """Return the state after an epoch that was judged by `value`; NaN never improves."""
        bound = math.inf if state.best is None else state.best - self.threshold * abs(state.best)
        if value < bound:
            return RateState(state.scale, value, 0)
        if state.n_bad + 1 < self.patience:
            return state._replace(n_bad=state.n_bad + 1)
        return RateState(state.scale * self.factor, state.best, 0)


LR_SCHEDULES: dict[str, type[ConstantRate]] = {
    "constant": ConstantRate,
    "cosine": CosineRate,
    "plateau": PlateauRate,
}


def verdict(
    history: Sequence[float],
    patience: int,
    learning_rate: float = math.inf,
    min_learning_rate: float = 0.0,
) -> Literal["continue", "stop"]:
    """Decide whether another epoch is worth it.

    Args:
        history: value of each epoch so far, lower is better; NaN is never best.
        patience: epochs to go on without a new best.
        learning_rate: in force, without the factor of the warm-up.
        min_learning_rate: at or below it the run has nothing left to learn.
    """
    if learning_rate <= min_learning_rate:
        return "stop"
    values = [value if math.isfinite(value) else math.inf for value in history]
    if not values:
        return "continue"
    since_best = len(values) - 1 - values.index(min(values))
    return "stop" if since_best >= patience else "continue"
