"""A search on disk, for those who start it and for those who read it.

```
study.journal       what happened; opened by optuna-dashboard as well
space.toml          the search space
driver.lock         who searches here
trials.parquet leaderboard.csv best.toml
trials/<number>/    run folders
```
"""

from pathlib import Path
from typing import Any, Self

from raypot.config import read_toml
from raypot.durable import write_whole
from raypot.errors import ConfigError, MissingInput
from raypot.properties import PROPERTIES
from raypot.tune.journal import Journal
from raypot.tune.space import SearchSpace
from raypot.tune.tables import ranked, write_tables
from raypot.tune.trial import TrialRow, trial_rows

__all__ = ["COUNTED", "Study", "TrialRow"]

JOURNAL, SPACE = "study.journal", "space.toml"
COUNTED = ("complete", "pruned", "failed")


class Study:
    """A search and its trials.

    Args:
        folder: where it lies.
        journal: what happened in it.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self.journal = journal

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a study to read it; it may be running.

        Raises:
            MissingInput: there is no study in the folder.
            CheckpointError: the journal is damaged.
        """
        folder = Path(folder)
        if not (folder / JOURNAL).is_file():
            raise MissingInput(f"{folder}: no study here ({JOURNAL} is missing)", path=str(folder))
        return cls(folder, Journal(folder / JOURNAL))

    @classmethod
    def start(cls, folder: Path, space: SearchSpace) -> Self:
        """Open a study to continue it, or make it; for the driver that owns the folder.

        Raises:
            ConfigError: the folder belongs to a search over another space.
            CheckpointError: the journal is damaged.
            OutputError: the folder cannot be written to.
        """
        _keep_space(folder / SPACE, space)
        study = cls(folder, Journal(folder / JOURNAL, writable=True))
        for params in space.defaults()[: space.tune.n_trials]:
            study.journal.enqueue(params)
        return study

    def trials(self) -> list[TrialRow]:
        """Return one row per configuration, by number."""
        return trial_rows(self.journal.attempts, self.folder)

    def leaderboard(self, top: int | None = None) -> list[TrialRow]:
        """Return the trials that left a model, the best first."""
        return ranked(self.trials())[:top]

    @property
    def best(self) -> TrialRow | None:
        """The trial with the lowest val/score."""
        return next(iter(self.leaderboard(top=1)), None)

    def write_tables(self) -> None:
        """Write trials.parquet, leaderboard.csv and best.toml."""
        write_tables(self.folder, self.trials())

    def summary(self) -> dict[str, Any]:
        """Return the outcome as plain values: counts, the best trial, what it cost."""
        rows = self.trials()
        count = {state: sum(row.state == state for row in rows) for state in COUNTED}
        best = next(iter(ranked(rows)), None)
        return {
            "study": str(self.folder),
            "n_trials": len(rows),
            **{f"n_{state}": number for state, number in count.items()},
            "best": None if best is None else _describe(best),
            "epochs_total": sum(row.epochs for row in rows),
            "wall_s": self.journal.wall_s,
        }


def _keep_space(path: Path, space: SearchSpace) -> None:
    """Write the space into a new study; refuse another one in an old study."""
    if path.exists():
        changes = SearchSpace.from_tree(read_toml(path), str(path)).changes(space)
        if changes:
            raise ConfigError(
                f"{path.parent}: this study searches another space ({'; '.join(changes)}); "
                "use that one, or choose another folder",
                changes=changes,
            )
    write_whole(path, space.to_toml().encode())


def _describe(best: TrialRow) -> dict[str, Any]:
    """Return the best trial as plain values; errors in raypot's units."""
    errors = {
        name: {
            **{kind: best.metrics.get(f"val/{name}/{kind}") for kind in ("rmse", "mae")},
            "unit": PROPERTIES[name.removesuffix("_per_atom")].unit,
        }
        for name in ("energy_per_atom", "forces")
    }
    return {"number": best.number, "value": best.value, "params": best.params, **errors}
