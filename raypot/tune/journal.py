"""The journal of a study: what was proposed, how it went, what has to be tried again.

Every change is one line appended to an Optuna journal and flushed, so that every prefix of the
file is a valid study. One driver writes (`raypot.tune.owner`); anybody may read at any time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from raypot.durable import failed
from raypot.errors import CheckpointError, ConfigError
from raypot.tune.samplers import SAMPLERS, draw_seed
from raypot.tune.space import SearchSpace
from raypot.tune.trial import (
    CONFIG,
    DUPLICATE_OF,
    REASON,
    RESULT,
    RETRY_OF,
    ROOT,
    same_params,
    trial_rows,
)

NAME = "raypot"
WALL_S = "wall_s"
LOCK_GRACE_S = 5  # after which the lock of a writer that died within a write is broken
MAX_ATTEMPTS = 10  # starts of one trial; a trial that takes its driver down each time ends there
TRIES_OF_THE_SAMPLER, TRIES = 20, 120  # proposals until the space counts as used up


class Attempt(NamedTuple):
    """A trial to be trained now.

    `attempt` is its number in the journal; `number` and `folder` stay when it is tried again.
    """

    attempt: int
    number: int
    folder: Path
    config: dict[str, Any]


class Journal:
    """The attempts of a study, in memory and on disk.

    Args:
        path: the file.
        writable: make it if it is missing, and cut off what a crash left of a line.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.folder = path.parent
        if writable:
            _drop_torn_line(path)
        self.optuna = _load(path, writable)

    @property
    def attempts(self) -> list[FrozenTrial]:
        """Every attempt by its number, those that wait included."""
        return list(self.optuna.get_trials(deepcopy=False))

    @property
    def wall_s(self) -> float:
        """Seconds of searching, over all drivers, up to the last trial that ended."""
        return float(self.optuna.user_attrs.get(WALL_S, 0.0))

    def note_wall(self, seconds: float) -> None:
        """Note how long the search took up to now, over all drivers."""
        self.optuna.set_user_attr(WALL_S, seconds)

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Put a configuration into the queue, unless the study holds it already."""
        self.optuna.enqueue_trial(dict(params), skip_if_exists=True)

    def propose(self, space: SearchSpace) -> Attempt | None:
        """Return the next trial: one to be tried again, a default, or a proposal of the sampler.

        A configuration that the study holds already is never returned.

        Returns:
            None if every configuration of the space has been tried, as far as one can tell.
        """
        for tries in range(TRIES):
            before = self.attempts
            n_distinct = len(trial_rows(before, self.folder))
            if n_distinct >= space.size() and not self.has_waiting():
                return None
            self.optuna.sampler = _sampler(space, n_distinct, tries)
            trial = self.optuna.ask()
            proposed = self._accept(trial, space, before)
            if proposed is not None:
                return proposed
        return None

    def has_waiting(self) -> bool:
        """Say whether a trial waits to be tried (again)."""
        return any(attempt.state == TrialState.WAITING for attempt in self.attempts)

    def report(self, attempt: int, epoch: int, value: float) -> None:
        """Note the lowest score of a trial up to an epoch."""
        self._trial(attempt).report(value, epoch)

    def finish(
        self, attempt: int, state: TrialState, result: Mapping[str, Any], reason: str, value: float
    ) -> None:
        """Close an attempt.

        Args:
            attempt: its number in the journal.
            state: COMPLETE, PRUNED or FAIL.
            result: metrics of the best epoch, epochs, wall_s.
            reason: why it was pruned or failed.
            value: lowest score; used for COMPLETE only, the journal knows it for PRUNED.
        """
        trial = self._trial(attempt)
        trial.set_user_attr(RESULT, dict(result))
        if reason:
            trial.set_user_attr(REASON, reason)
        self.optuna.tell(attempt, value if state == TrialState.COMPLETE else None, state=state)

    def requeue(self, attempt: int, reason: str) -> None:
        """Close an attempt as failed and put its configuration back into the queue.

        The new attempt is written first: a crash in between leaves a trial that is closed by the
        next `reconcile`, never one that is lost.

        Args:
            attempt: its number in the journal.
            reason: why, for example `driver died`.
        """
        attempts = self.attempts
        old = attempts[attempt]
        root = old.user_attrs.get(ROOT, old.number)
        fixed = old.system_attrs.get("fixed_params", {})
        known = CONFIG in old.user_attrs or bool(fixed)
        queued = any(other.user_attrs.get(RETRY_OF) == attempt for other in attempts)
        n_before = sum(other.user_attrs.get(ROOT) == root for other in attempts)
        if known and not queued and n_before < MAX_ATTEMPTS:
            attrs = {ROOT: root, RETRY_OF: attempt}
            self.optuna.enqueue_trial({**fixed, **old.params}, user_attrs=attrs)
        self._trial(attempt).set_user_attr(REASON, reason)
        self.optuna.tell(attempt, state=TrialState.FAIL)

    def reconcile(self) -> list[int]:
        """Requeue every trial that a dead driver left running.

        Returns:
            The numbers of their attempts.
        """
        orphans = [one.number for one in self.attempts if one.state == TrialState.RUNNING]
        for attempt in orphans:
            self.requeue(attempt, "driver died")
        return orphans

    def _accept(
        self, trial: optuna.Trial, space: SearchSpace, before: list[FrozenTrial]
    ) -> Attempt | None:
        """Fill a new attempt; close it if it is a duplicate or not a valid run."""
        try:
            config, reason = space.sample(trial), ""
        except ConfigError as error:
            config, reason = {}, f"ConfigError: {error}"
        twin = same_params(self.attempts[trial.number], before)
        if twin is not None and RETRY_OF not in trial.user_attrs:
            trial.set_user_attr(DUPLICATE_OF, twin.number)
            self.optuna.tell(trial, state=TrialState.FAIL)
            return None
        number = trial.user_attrs.get(ROOT, trial.number)
        trial.set_user_attr(ROOT, number)
        trial.set_user_attr(CONFIG, config)
        if reason:
            self.finish(trial.number, TrialState.FAIL, {}, reason, 0.0)
            return None
        return Attempt(trial.number, number, self.folder / "trials" / str(number), config)

    def _trial(self, attempt: int) -> optuna.Trial:
        return optuna.Trial(self.optuna, self.attempts[attempt]._trial_id)


def _load(path: Path, writable: bool) -> optuna.Study:
    """Open the file; one that may be written is begun if it is new."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The lock that Optuna takes by default spins for ever on a stale link with a relative target.
    lock = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE_S)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        if writable and not storage.get_all_studies():
            return optuna.create_study(study_name=NAME, storage=storage)
        return optuna.load_study(study_name=NAME, storage=storage)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a journal of a study ({error}); restore it or choose another folder",
            path=str(path),
        ) from error


def _drop_torn_line(path: Path) -> None:
    """Cut off what a crash left of a line; every line before it is whole."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return
    try:
        with path.open("r+b") as file:
            file.truncate(whole)
    except OSError as error:
        raise failed(path, error, "the study is intact") from error


def _sampler(space: SearchSpace, n_distinct: int, tries: int) -> optuna.samplers.BaseSampler:
    tune = space.tune
    name = tune.sampler if tries < TRIES_OF_THE_SAMPLER else "random"
    n_startup = min(10, max(4, tune.n_trials // 4))
    return SAMPLERS[name](draw_seed(tune.seed, n_distinct, tries), n_startup)
