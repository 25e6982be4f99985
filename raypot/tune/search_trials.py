"""The two faces of a search towards Ray Tune: in the driver, and in a trial process."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from raypot.train.signals import StopWish
from raypot.tune.branches import at
from raypot.tune.driver import INTERRUPTED, Driver
from raypot.tune.runner import Train, run_trial
from raypot.tune.search_cluster import last_line
from raypot.tune.space import TuneConfig
from raypot.tune.study import Study

EPOCH, SCORE = "epoch", "score"
NEVER_PAUSE = 10**9  # epochs


def asha(settings: TuneConfig, max_epochs: int) -> TrialScheduler:
    """Asynchronous successive halving on the lowest score up to an epoch.

    At `grace_epochs`, and at every `reduction_factor` times more, a trial goes on if it is among
    the best 1/`reduction_factor` of those that came there.
    **Source** Li et al., MLSys 2020.

    Args:
        settings: of the search.
        max_epochs: of any trial.
    """
    return AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode="min",
        max_t=max_epochs + 1,  # the last epoch is ended by the trial itself
        grace_period=min(settings.grace_epochs, max_epochs),
        reduction_factor=settings.reduction_factor,
    )


def median(settings: TuneConfig, max_epochs: int) -> TrialScheduler:
    """Stop a trial whose best is worse than the median of the others at the same epoch.

    Args:
        settings: of the search.
        max_epochs: of any trial.
    """
    grace = float(min(settings.grace_epochs, max_epochs))
    return MedianStoppingRule(
        time_attr=EPOCH, metric=SCORE, mode="min", grace_period=grace, min_time_slice=NEVER_PAUSE
    )


def none(settings: TuneConfig, max_epochs: int) -> TrialScheduler:  # noqa: ARG001
    """Train every trial to its end."""
    return FIFOScheduler()


TRIAL_SCHEDULERS: dict[str, Callable[[TuneConfig, int], TrialScheduler]] = {
    "asha": asha,
    "median": median,
    "none": none,
}


def trial_process(training: Train) -> Callable[[Mapping[str, Any]], None]:
    """Return the function that a trial process runs once for each of its trials."""

    def trial(config: Mapping[str, Any]) -> None:
        stopped: list[SystemExit] = []

        def report(state: dict[str, Any]) -> bool:
            # Tune stops a function by SystemExit from its report. Training shall end in order
            # first; then the exit goes on.
            try:
                tune.report(state)
            except SystemExit as leave:
                stopped.append(leave)
            return bool(stopped)

        last = run_trial(json.loads(config["task"]), training, report)
        if stopped:
            raise stopped[0]
        tune.report({**last, "done": True})

    return trial


class Proposals(Searcher):  # type: ignore[misc]
    """What Ray Tune asks for configurations; `Driver` answers.

    Args:
        driver: keeps the study.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric=SCORE, mode="min")
        self.driver = driver
        self.attempts: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the task of the next trial, None for none now, FINISHED for none ever."""
        attempt = self.driver.next()
        if attempt is None:
            return Searcher.FINISHED if self.driver.is_over else None
        self.attempts[trial_id] = attempt.attempt
        task = {"config": attempt.config, "folder": str(attempt.folder)}
        return {"task": json.dumps(task)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on the state after an epoch that is not the last."""
        self.driver.heard(self.attempts[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on the last state; a crash is passed on by `Watch`, which knows its reason."""
        if not error:
            self.driver.ended(self.attempts[trial_id], result or {})

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study on disk is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


class Watch(tune.Callback):  # type: ignore[misc]
    """Gives the driver its ticks, the signals that came, and the reasons of crashes.

    Args:
        driver: keeps the study.
        wish: whether a signal came.
        attempts: number in the journal of every trial of Ray Tune.
    """

    def __init__(self, driver: Driver, wish: StopWish, attempts: Mapping[str, int]) -> None:
        self.driver = driver
        self.wish = wish
        self.attempts = attempts

    def on_step_end(self, **_info: Any) -> None:
        """Tick after every event that Ray Tune handled."""
        if self.wish():
            self.driver.stop(INTERRUPTED)
        self.driver.tick()

    def on_trial_error(self, *, trial: Any, **_info: Any) -> None:
        """Record a trial that Ray Tune has given up."""
        errors = Path(trial.error_file) if trial.error_file else None
        text = errors.read_text(encoding="utf-8") if errors and errors.exists() else ""
        self.driver.crashed(self.attempts[trial.trial_id], last_line(text))


class PastTrial(NamedTuple):
    """What a scheduler wants to know about a trial that is over."""

    trial_id: str

    def is_finished(self) -> bool:
        """Say that it is over."""
        return True


class PastController(NamedTuple):
    """The same about a search that is over."""

    def get_live_trials(self) -> list[Any]:
        """Return nothing."""
        return []


def replay(study: Study, scheduler: TrialScheduler) -> None:
    """Tell a new scheduler how far the earlier trials of the study came."""
    for attempt in study.journal.attempts:
        if not attempt.state.is_finished():
            continue
        past, controller = PastTrial(f"attempt-{attempt.number}"), PastController()
        scheduler.on_trial_add(controller, past)
        for epoch, score in attempt.intermediate_values.items():
            scheduler.on_trial_result(controller, past, {EPOCH: epoch, SCORE: score})


def resources_per_trial(driver: Driver) -> dict[str, float]:
    """Return what one trial occupies: one core, and a fair share of a GPU where there are GPUs."""
    n_gpus = ray.cluster_resources().get("GPU", 0.0)
    if not n_gpus or at(driver.space.written, "runtime.device") == "cpu":
        return {"cpu": 1.0}
    per_gpu = -(-driver.concurrency // int(n_gpus))
    return {"cpu": 1.0, "gpu": int(1e4 / per_gpu) / 1e4}
