"""The decisions of a search: what to try next, what an outcome means, when it is over.

Nothing here knows Ray: `raypot.tune.search` carries proposals to trial processes and their
reports back.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from raypot.errors import (
    FormatError,
    LabelError,
    MissingExtra,
    MissingInput,
    OutputError,
    RaypotError,
    SearchError,
    StorageError,
    StoreError,
)
from raypot.tune.events import SearchEvent
from raypot.tune.journal import Attempt
from raypot.tune.owner import Ownership
from raypot.tune.space import SearchSpace
from raypot.tune.study import COUNTED, Study
from raypot.tune.tables import ranked

INTERRUPTED, TIME_LIMIT = "interrupted", "time limit"
EVENT_INTERVAL_S = 1.0
TABLES_INTERVAL_S = 5.0
# Failures that every other trial would meet as well: the search ends with them.
FATAL: dict[str, type[RaypotError]] = {
    kind.__name__: kind
    for kind in (
        FormatError,
        LabelError,
        MissingExtra,
        MissingInput,
        OutputError,
        StorageError,
        StoreError,
    )
}


@dataclass
class Running:
    """A trial that trains now."""

    attempt: Attempt
    since: float
    epoch: int = 0
    speed: float = 0.0
    score: float = math.inf
    metrics: str = "{}"


class Driver:
    """Keeps the study while trials come and go.

    Args:
        study: owned by this process.
        space: what to propose from, with the settings of the search.
        concurrency: trials at the same time.
        owner: shown to be alive at every tick.
        on_event: called at every change and at least every second.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        concurrency: int,
        owner: Ownership,
        *,
        on_event: Callable[[SearchEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study = study
        self.space = space
        self.concurrency = concurrency
        self.running: dict[int, Running] = {}
        self.stop_reason = ""
        self.fatal: RaypotError | None = None
        self._owner = owner
        self._on_event = on_event
        self._clock = clock
        self._began = clock()
        self._wall_before = study.journal.wall_s
        self._told = self._tabled = -math.inf
        self._used_up = False
        self._walls: list[float] = []
        self._refresh()

    @property
    def is_over(self) -> bool:
        """Whether no further trial will be proposed."""
        if self.stop_reason or self._used_up:
            return True
        full = len(self._rows) >= self.space.tune.n_trials
        return full and not self.study.journal.has_waiting()

    def next(self) -> Attempt | None:
        """Return the next trial to run; None if there is none now."""
        if self.is_over or len(self.running) >= self.concurrency:
            return None
        attempt = self.study.journal.propose(self.space)
        self._refresh()
        if attempt is None:
            self._used_up = not self.is_over
            return None
        self.running[attempt.attempt] = Running(attempt, self._clock())
        self._tell()
        return attempt

    def heard(self, attempt: int, report: Mapping[str, Any]) -> None:
        """Take the state of a trial after an epoch."""
        running = self.running[attempt]
        epoch, score = int(report["epoch"]), float(report["score"])
        if epoch > running.epoch:
            self.study.journal.report(attempt, epoch, score)
        running.epoch, running.score = epoch, score
        running.speed, running.metrics = float(report["speed"]), report["metrics"]
        self._tell()

    def ended(self, attempt: int, report: Mapping[str, Any]) -> None:
        """Take the last state of a trial, whether it ended by itself or was stopped."""
        failure = report.get("failure")
        if failure is not None and report["kind"] in FATAL:
            self.fatal = FATAL[report["kind"]](failure.partition(": ")[2])
            self.stop(INTERRUPTED)
            self._close(attempt, requeue=failure)
        elif failure is not None or "score" not in report:
            self._close(attempt, TrialState.FAIL, report, failure or "no epoch was trained")
        elif report.get("ended") or self._was_the_last_epoch(attempt, report):
            self.heard(attempt, report)
            self._close(attempt, TrialState.COMPLETE, report)
        elif self.stop_reason == INTERRUPTED:
            self._close(attempt, requeue=INTERRUPTED)
        else:
            self.heard(attempt, report)
            by = self.stop_reason or f"stopped by {self.space.tune.scheduler}"
            self._close(attempt, TrialState.PRUNED, report, f"{by} after epoch {report['epoch']}")

    def crashed(self, attempt: int, reason: str) -> None:
        """Take note of a trial whose process died more often than it is restarted."""
        self._close(attempt, TrialState.FAIL, {}, reason)

    def stop(self, reason: str) -> None:
        """Propose nothing more; running trials are to be stopped at their next epoch."""
        self.stop_reason = self.stop_reason or reason

    def tick(self) -> None:
        """Show that the driver lives, watch the time limit, tell the caller how it stands."""
        self._owner.beat()
        limit = self.space.tune.time_limit
        if limit is not None and self._clock() - self._began > 60.0 * limit:
            self.stop(TIME_LIMIT)
        if self._clock() - self._told >= EVENT_INTERVAL_S:
            self._tell()

    def conclude(self) -> None:
        """Put back into the queue what still runs, and write the tables."""
        for attempt in list(self.running):
            self._close(attempt, requeue=self.stop_reason or INTERRUPTED)
        self.study.write_tables()
        self._tell()

    def judge(self) -> None:
        """Say by an exception if the search went wrong.

        Raises:
            RaypotError: a failure that every trial would meet.
            SearchError: too many trials failed.
        """
        if self.fatal is not None:
            raise self.fatal
        failed = [row for row in self._rows if row.state == "failed"]
        limit = self.space.tune.max_failed_fraction
        if failed and len(failed) > limit * len(self._rows):
            raise SearchError(
                f"{self.study.folder}: {len(failed)} of {len(self._rows)} trials failed, at most "
                f"{limit:.0%} may; the last one: {failed[-1].reason}",
                n_failed=len(failed),
                n_trials=len(self._rows),
            )

    def _close(
        self,
        attempt: int,
        state: TrialState = TrialState.FAIL,
        report: Mapping[str, Any] | None = None,
        reason: str = "",
        requeue: str = "",
    ) -> None:
        running = self.running.pop(attempt)
        if requeue:
            self.study.journal.requeue(attempt, requeue)
        else:
            report = report or {}
            result = {
                "metrics": json.loads(report.get("metrics", "{}")),
                "epochs": int(report.get("epoch", 0)),
                "wall_s": float(report.get("wall_s", 0.0)),
            }
            value = float(report.get("score", math.nan))
            self.study.journal.finish(attempt, state, result, reason, value)
            self._walls.append(self._clock() - running.since)
        self.study.journal.note_wall(self._wall_before + self._clock() - self._began)
        self._refresh()
        self._tell()

    def _was_the_last_epoch(self, attempt: int, report: Mapping[str, Any]) -> bool:
        n_epochs = self.running[attempt].attempt.config["training"]["n_epochs"]
        return bool(report["epoch"] >= n_epochs)

    def _refresh(self) -> None:
        """Read the trials again and write the tables if they are old."""
        self._rows = self.study.trials()
        if self._clock() - self._tabled > TABLES_INTERVAL_S:
            self._tabled = self._clock()
            self.study.write_tables()

    def _tell(self) -> None:
        self._told = self._clock()
        if self._on_event is not None:
            self._on_event(self.event())

    def event(self) -> SearchEvent:
        """Return how the search stands now."""
        count = {state: sum(row.state == state for row in self._rows) for state in COUNTED}
        score, number, metrics = self._best()
        return SearchEvent(
            done=sum(count.values()),
            running=len(self.running),
            pruned=count["pruned"],
            failed=count["failed"],
            total=max(self.space.tune.n_trials, len(self._rows)),
            best=score,
            best_number=number,
            best_metrics=metrics,
            structures_per_second=sum(one.speed for one in self.running.values()),
            elapsed_s=self._clock() - self._began,
            eta_s=self._rest(sum(count.values())),
        )

    def _best(self) -> tuple[float | None, int | None, dict[str, float]]:
        """Return score, trial and metrics of the best, among running and finished trials."""
        best = next(iter(ranked(self._rows)), None)
        lowest = math.inf if best is None or best.value is None else best.value
        ahead = min(self.running.values(), key=lambda one: one.score, default=None)
        if ahead is not None and ahead.score < lowest:
            return ahead.score, ahead.attempt.number, json.loads(ahead.metrics)
        return (None, None, {}) if best is None else (best.value, best.number, best.metrics)

    def _rest(self, done: int) -> float | None:
        """Estimate the seconds until the end from the mean time of the trials that finished."""
        if not self._walls:
            return None
        mean, now = sum(self._walls) / len(self._walls), self._clock()
        waiting = max(0, self.space.tune.n_trials - done - len(self.running))
        started = sum(max(0.0, mean - (now - one.since)) for one in self.running.values())
        rest = (waiting * mean + started) / self.concurrency
        limit = self.space.tune.time_limit
        return rest if limit is None else min(rest, max(0.0, 60.0 * limit - (now - self._began)))
