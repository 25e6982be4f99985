"""The ranges that may stand at a leaf of a search space.

`{ choice = [...] }`, `{ integers = [low, high], step =, log = }`,
`{ uniform = [low, high], step = }` and `{ log_uniform = [low, high] }`; each may name the
`default` that is tried first.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, Self

from pydantic import Field, StrictInt, model_validator

from raypot.config import Config, build, did_you_mean
from raypot.errors import ConfigError


class Suggests(Protocol):
    """What a range asks its value from; an Optuna trial is one."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Pick one of `choices`."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Pick an integer between `low` and `high`, both included."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Pick a number between `low` and `high`, both included."""


class Range(Config):
    """A leaf whose value the search picks."""

    default: Any = Field(None, description="Value that is tried first.")

    @abstractmethod
    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask `trial` for the value of the leaf `name`."""

    @abstractmethod
    def corners(self) -> list[Any]:
        """Return the smallest and the largest value, or every choice."""

    @abstractmethod
    def size(self) -> float:
        """Return how many values there are; infinity for a continuous range."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Say whether the search could pick `value`."""

    @abstractmethod
    def nearest(self, value: Any) -> Any:
        """Return what the search could pick that is nearest to `value`, or the middle."""

    def written(self, value: Any) -> Any:
        """Return the form in which `value` stands among the parameters of a trial."""
        return value

    @model_validator(mode="after")
    def _default_is_inside(self) -> Self:
        if self.default is not None and not self.contains(self.default):
            raise ValueError(f"default {self.default!r} is outside of the range")
        return self


class ChoiceRange(Range):
    """One value of a list; values that are lists or tables are compared by their JSON form."""

    choice: list[Any] = Field(min_length=1, description="The values to choose from.")

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        written = [self.written(value) for value in self.choice]
        twice = [value for i, value in enumerate(written) if value in written[:i]]
        if twice:
            raise ValueError(f"choice holds {twice[0]!r} twice; remove one")
        return self

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask for one of the values."""
        written = [self.written(value) for value in self.choice]
        return self.choice[written.index(trial.suggest_categorical(name, written))]

    def corners(self) -> list[Any]:
        """Return every value."""
        return list(self.choice)

    def size(self) -> float:
        """Count the values."""
        return len(self.choice)

    def contains(self, value: Any) -> bool:
        """Say whether `value` is in the list."""
        return value in self.choice

    def nearest(self, value: Any) -> Any:
        """Return `value` if it is in the list, else the nearest number, else the first value."""
        if self.contains(value):
            return value
        if _is_number(value) and all(_is_number(one) for one in self.choice):
            return min(self.choice, key=lambda one: abs(one - value))
        return self.choice[0]

    def written(self, value: Any) -> Any:
        """Return plain values as they are and lists or tables as JSON."""
        return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


class NumberRange(Range):
    """Between two ends, both included."""

    @property
    @abstractmethod
    def ends(self) -> tuple[Any, Any]:
        """The smallest and the largest value."""

    @property
    def is_logarithmic(self) -> bool:
        """Whether factors rather than differences are spread evenly."""
        return False

    def corners(self) -> list[Any]:
        """Return both ends."""
        return list(self.ends)

    def contains(self, value: Any) -> bool:
        """Say whether `value` lies between the ends."""
        return _is_number(value) and self.ends[0] <= value <= self.ends[1]

    def nearest(self, value: Any) -> Any:
        """Return `value` moved between the ends and onto a step, or the middle of the range."""
        low, high = self.ends
        middle = math.sqrt(low * high) if self.is_logarithmic else (low + high) / 2
        return self._on_step(min(max(value if _is_number(value) else middle, low), high))

    def _on_step(self, value: float) -> Any:
        return value

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> Self:
        low, high = self.ends
        if low > high:
            raise ValueError(f"the lower end {low!r} is above the upper end {high!r}; swap them")
        if self.is_logarithmic and low <= 0:
            raise ValueError(f"a logarithmic range needs a lower end above 0, got {low!r}")
        return self


class IntegerRange(NumberRange):
    """An integer, on a step or logarithmic if asked."""

    integers: tuple[StrictInt, StrictInt] = Field(description="Smallest and largest value.")
    step: int | None = Field(None, ge=1, description="Distance between two values.")
    log: bool = Field(False, description="Spread the factors evenly, not the differences.")

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest value."""
        return self.integers

    @property
    def is_logarithmic(self) -> bool:
        """Whether `log` is set."""
        return self.log

    def suggest(self, trial: Suggests, name: str) -> int:
        """Ask for an integer."""
        return trial.suggest_int(name, *self.ends, step=self.step or 1, log=self.log)

    def size(self) -> float:
        """Count the values."""
        return (self.ends[1] - self.ends[0]) // (self.step or 1) + 1

    def contains(self, value: Any) -> bool:
        """Say whether `value` is an integer on a step between the ends."""
        inside = super().contains(value) and int(value) == value
        return inside and (value - self.ends[0]) % (self.step or 1) == 0

    def _on_step(self, value: float) -> int:
        step = self.step or 1
        return self.ends[0] + math.floor((value - self.ends[0]) / step) * step

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        if self.step is not None and self.log:
            raise ValueError("step and log do not go together; remove one of them")
        if (self.ends[1] - self.ends[0]) % (self.step or 1):
            raise ValueError(
                f"step {self.step} does not lead from {self.ends[0]} to {self.ends[1]}"
            )
        return self


class UniformRange(NumberRange):
    """A number, on a step if asked."""

    uniform: tuple[float, float] = Field(description="Smallest and largest value.")
    step: float | None = Field(None, gt=0, description="Distance between two values.")

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.uniform

    def suggest(self, trial: Suggests, name: str) -> float:
        """Ask for a number."""
        return trial.suggest_float(name, *self.ends, step=self.step)

    def size(self) -> float:
        """Count the values on the steps; infinite without a step."""
        if self.step is None:
            return math.inf if self.ends[0] < self.ends[1] else 1
        return round((self.ends[1] - self.ends[0]) / self.step) + 1

    def _on_step(self, value: float) -> float:
        if self.step is None:
            return float(value)
        return self.ends[0] + round((value - self.ends[0]) / self.step) * self.step

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        steps = (self.ends[1] - self.ends[0]) / (self.step or 1.0)
        if self.step is not None and abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            raise ValueError(
                f"step {self.step} does not lead from {self.ends[0]} to {self.ends[1]}"
            )
        return self


class LogUniformRange(NumberRange):
    """A positive number whose logarithm is spread evenly."""

    log_uniform: tuple[float, float] = Field(description="Smallest and largest value, above 0.")

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.log_uniform

    @property
    def is_logarithmic(self) -> bool:
        """Always."""
        return True

    def suggest(self, trial: Suggests, name: str) -> float:
        """Ask for a number."""
        return trial.suggest_float(name, *self.ends, log=True)

    def size(self) -> float:
        """Infinite, unless both ends are one."""
        return math.inf if self.ends[0] < self.ends[1] else 1


RANGES: dict[str, type[Range]] = {
    "choice": ChoiceRange,
    "integers": IntegerRange,
    "uniform": UniformRange,
    "log_uniform": LogUniformRange,
}
OPTIONS = {"step", "log", "default"}


def read_range(node: Any, where: str) -> Range | None:
    """Read `node` as a range; None if it is an ordinary table.

    Args:
        node: a table of the space file.
        where: file, section and key, for the error message.

    Raises:
        ConfigError: `node` is meant as a range and is not a valid one.
    """
    if not isinstance(node, Mapping):
        return None
    kinds = [key for key in node if key in RANGES]
    if len(kinds) > 1:
        raise ConfigError(f"{where}: {' and '.join(kinds)} in one range; keep one of them")
    if kinds:
        return build(RANGES[kinds[0]], node, where)
    rest = [key for key in node if key not in OPTIONS]
    if len(rest) == 1 and isinstance(node[rest[0]], list):
        suggestion = did_you_mean(rest[0], dict(RANGES))
        if suggestion.startswith("; did you mean"):
            raise ConfigError(f"{where}: {rest[0]}: unknown kind of range{suggestion}")
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
