"""A search space: a run file with ranges at its leaves, validated whole before anything starts.

Only ranges of chosen branches are asked: where `name` is a choice, the tables of the names that
were not picked are left out. Parameters carry dotted paths (`model.painn.n_channels`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from raypot.config import (
    Config,
    apply_overrides,
    build,
    differences,
    fingerprint,
    lookup,
    read_toml,
    to_toml,
)
from raypot.errors import ConfigError
from raypot.train.settings import RunConfig
from raypot.tune.branches import Branch, Tree, at, corner, fill, n_corners, read_ranges, walk
from raypot.tune.ranges import ChoiceRange, Range, Suggests
from raypot.tune.samplers import SAMPLERS

MAX_BRANCHES = 512  # branches that are validated; more are a mistake in the file
MAY_CHANGE = ("n_trials", "time_limit", "concurrency", "max_failed_fraction")
NAME_OF_THE_MODEL = "model.name"


class TuneConfig(Config):
    """The `[tune]` section of a space file."""

    n_trials: int = Field(32, ge=1, le=100_000, description="Different configurations to try.")
    time_limit: float | None = Field(None, gt=0, description="Stop after this many minutes.")
    sampler: str = Field("tpe", description="Who proposes: tpe or random.")
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha", description="Who stops bad trials early: asha, median, none."
    )
    grace_epochs: int = Field(5, ge=1, description="Epochs before a trial may be stopped.")
    reduction_factor: float = Field(
        3.0, gt=1, description="At every rung of ASHA one trial in this many goes on."
    )
    concurrency: int | None = Field(
        None, ge=1, description="Trials at the same time; default: one for each core."
    )
    max_failed_fraction: float = Field(
        0.5, ge=0, le=1, description="A search with a larger share of failed trials is an error."
    )
    seed: int = Field(0, ge=0, description="Of the proposals.")

    @field_validator("sampler")
    @classmethod
    def _sampler_is_known(cls, name: str) -> str:
        lookup(name, SAMPLERS, "sampler")
        return name


@dataclass(frozen=True)
class SearchSpace:
    """The ranges of a space file and the settings of the search.

    Args:
        where: the file, for messages.
        written: plain values of the file after overrides, without `[tune]`.
        ranges: the same tree with `Range` objects at its leaves.
        tune: the `[tune]` section.
    """

    where: str
    written: Tree
    ranges: Tree
    tune: TuneConfig

    @classmethod
    def read(
        cls, path: Path, overrides: tuple[str, ...] = (), store: str | None = None
    ) -> "SearchSpace":
        """Read a space file and validate every branch of it.

        Args:
            path: a TOML file.
            overrides: `dotted.key=value` texts that win over the file; a value may be a range.
            store: wins over `data.store`.

        Raises:
            MissingInput: no such file.
            ConfigError: a range, a key or a value at an end of a range that is not allowed.
        """
        tree = apply_overrides(read_toml(path), overrides)
        if store is not None:
            tree.setdefault("data", {})["store"] = store
        return cls.from_tree(tree, str(path))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], where: str) -> "SearchSpace":
        """Build and validate a space from the plain values of a space file."""
        rest = dict(tree)
        tune = build(_Tune, {"tune": rest.pop("tune", {})}, where).tune
        rest = with_absolute_store(rest)
        space = cls(where, rest, read_ranges(rest, where), tune)
        for _ in space.corners():
            pass
        return space

    @property
    def fingerprint(self) -> str:
        """What identifies the space; settings that may change during a search are not in it."""
        tune = self.tune.model_dump(mode="json", exclude=set(MAY_CHANGE))
        return fingerprint({"space": self.written, "tune": tune})

    def to_toml(self) -> str:
        """Write the space as a file that `read` understands."""
        return to_toml({"tune": self.tune.model_dump(mode="json"), **self.written})

    def changes(self, later: "SearchSpace") -> list[str]:
        """List the differences to `later` that a study cannot take."""
        lines = differences(self.written, later.written)
        ignored = set(MAY_CHANGE)
        old, new = (s.tune.model_dump(mode="json", exclude=ignored) for s in (self, later))
        return lines + differences(old, new, "tune")

    def sample(self, trial: Suggests) -> Tree:
        """Ask `trial` for a configuration.

        Returns:
            The resolved tree of a `RunConfig`.

        Raises:
            ConfigError: the values do not go together.
        """
        tree = fill(self.ranges, lambda path, one: one.suggest(trial, path))
        return build(RunConfig, tree, self.where).tree()

    def defaults(self) -> list[dict[str, Any]]:
        """Return the parameters to try first: the shipped default of every model in the space.

        A default that lies outside of its range is moved to the nearest value; a `default` that
        the range names wins.
        """
        models = at(self.ranges, NAME_OF_THE_MODEL)
        if not isinstance(models, ChoiceRange):
            return [self._default_of(models)]
        first = models.nearest(models.default or at(shipped_default(), NAME_OF_THE_MODEL))
        return [self._default_of(name) for name in sorted(models.choice, key=first.__ne__)]

    def branches(self) -> list[Branch]:
        """Return, for every combination of chosen names, the ranges by path.

        Raises:
            ConfigError: there are too many combinations.
        """
        found = list(islice(walk(self.ranges), MAX_BRANCHES + 1))
        if len(found) > MAX_BRANCHES:
            raise ConfigError(
                f"{self.where}: more than {MAX_BRANCHES} combinations of names; "
                "split the file into several searches"
            )
        return found

    def corners(self) -> Iterator[RunConfig]:
        """Yield the smallest and the largest run of every branch, and every choice.

        Raises:
            ConfigError: one of them is not a valid run.
        """
        for branch in self.branches():
            for index in range(n_corners(branch)):
                yield build(RunConfig, corner(self.ranges, branch, index), self.where)

    def size(self) -> float:
        """Return how many configurations there are; infinity with a continuous range."""
        return sum(prod(one.size() for one in branch.values()) for branch in self.branches())

    def max_epochs(self) -> int:
        """Return the largest `training.n_epochs` that a trial can have."""
        return max(run.training.n_epochs for run in self.corners())

    def _default_of(self, model: str | None) -> dict[str, Any]:
        """Return the parameters nearest to the shipped default of one model."""
        params: dict[str, Any] = {}
        shipped = shipped_default(model)

        def pick(path: str, one: Range) -> Any:
            if path == NAME_OF_THE_MODEL:
                value = model
            else:
                value = one.nearest(at(shipped, path)) if one.default is None else one.default
            params[path] = one.written(value)
            return value

        fill(self.ranges, pick)
        return params


class _Tune(Config):
    """The place of `[tune]` in its file, so that messages name it."""

    tune: TuneConfig


def with_absolute_store(tree: Tree) -> Tree:
    """Return `tree` with the path of the store made absolute, because trials run elsewhere."""
    store = at(tree, "data.store")
    if not isinstance(store, str) or not store or "://" in store:
        return tree
    return {**tree, "data": {**tree["data"], "store": str(Path(store).absolute())}}


def shipped_default(model: Any = None) -> Tree:
    """Return the resolved tree of a run file that says nothing but its model."""
    tree = {} if model is None else {"model": {"name": model}}
    return build(RunConfig, tree, "shipped defaults").tree()
