"""The trials of a study that an ensemble may be made of, and the data that they share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from raypot.data.splits import Split
from raypot.data.store import Store
from raypot.errors import CheckpointError, SearchError, StoreError, UsageError
from raypot.train.folder import RunFolder
from raypot.train.model_file import Member, read_model
from raypot.tune.study import Study
from raypot.tune.trial import TrialRow

MAX_CANDIDATES = 16  # more mostly repeat what the best of them know


class Candidate(NamedTuple):
    """A trained trial."""

    trial: int
    seed: int
    member: Member
    provenance: dict[str, Any]


class Candidates(NamedTuple):
    """Trials that were trained on the same rows of the same store, the best first."""

    rows: tuple[Candidate, ...]
    split: Split
    store: Store
    level: str

    @property
    def members(self) -> tuple[Member, ...]:
        """Their models."""
        return tuple(row.member for row in self.rows)


def find_candidates(folder: Path, n_wanted: int) -> Candidates:
    """Read the best trials of a study.

    Complete trials come in; pruned ones too where fewer than `n_wanted` are complete.

    Args:
        folder: of the study.
        n_wanted: how many members the ensemble may have.

    Raises:
        MissingInput: no study there, or its store is gone.
        SearchError: no trial left a model.
        UsageError: trials that were trained on different data.
        StoreError: the store changed since.
        CheckpointError: a damaged model file.
    """
    trials = choose_trials(Study.open(folder).leaderboard(), n_wanted)
    if not trials:
        raise SearchError(
            f"{folder}: no trial left a model; look at the reasons in its trials and search again"
        )
    splits = [Split.load(RunFolder(trial.folder).split) for trial in trials]
    _check_same_data(trials, splits)
    data = trials[0].config["data"]
    store = Store.open(data["store"])
    if store.fingerprint != splits[0].store:
        raise StoreError(
            f"{store.path}: changed since the study in {folder} was made; restore the store"
        )
    return Candidates(tuple(_read(trial) for trial in trials), splits[0], store, data["level"])


def choose_trials(trials: Sequence[TrialRow], n_wanted: int) -> list[TrialRow]:
    """Return the trials to choose members from, in the order given.

    Args:
        trials: the best first.
        n_wanted: how many members the ensemble may have.
    """
    usable = [trial for trial in trials if RunFolder(trial.folder).model.is_file()]
    complete = [trial for trial in usable if trial.state == "complete"]
    chosen = complete if len(complete) >= n_wanted else usable
    return chosen[:MAX_CANDIDATES]


def _check_same_data(trials: Sequence[TrialRow], splits: Sequence[Split]) -> None:
    first, level = splits[0].fingerprint, trials[0].config["data"]["level"]
    for trial, split in zip(trials, splits, strict=True):
        if split.fingerprint != first or trial.config["data"]["level"] != level:
            raise UsageError(
                f"trials {trials[0].number} and {trial.number} were trained on different rows or "
                "labels, so that nothing is left to judge them by together; search with one "
                "[data] section",
                trial=trial.number,
            )


def _read(trial: TrialRow) -> Candidate:
    path = RunFolder(trial.folder).model
    file = read_model(path)
    if len(file.members) != 1:
        raise CheckpointError(f"{path}: holds {len(file.members)} members, expected one model")
    member = replace(file.members[0], name=f"trial_{trial.number}", weight=1.0)
    return Candidate(trial.number, int(trial.config["seed"]), member, file.provenance)
