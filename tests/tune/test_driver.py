import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fake_training
import pytest

from raypot.errors import DivergedError, LabelError, SearchError
from raypot.tune.driver import INTERRUPTED, Driver
from raypot.tune.events import SearchEvent
from raypot.tune.journal import Attempt
from raypot.tune.owner import Ownership
from raypot.tune.runner import History, run_trial
from raypot.tune.space import SearchSpace
from raypot.tune.study import Study


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[SearchEvent]:
    return []


@pytest.fixture
def start(
    space: SearchSpace, tmp_path: Path, clock: Clock, events: list[SearchEvent]
) -> Iterator[Callable[..., Driver]]:
    folder = tmp_path / "study"
    folder.mkdir()
    with Ownership(folder) as owner:

        def start(space: SearchSpace = space) -> Driver:
            study = Study.start(folder, space)
            study.journal.reconcile()
            return Driver(study, space, 2, owner, on_event=events.append, clock=clock)

        yield start


def state(epoch: int, score: float, **more: object) -> dict[str, object]:
    metrics = json.dumps({"val/score": score})
    base = {"epoch": epoch, "score": score, "speed": 5.0, "wall_s": 1.0, "metrics": metrics}
    return {**base, **more}


def following(driver: Driver) -> Attempt:
    attempt = driver.next()
    assert attempt is not None
    return attempt


def test_a_search_from_begin_to_end(start, events: list[SearchEvent]) -> None:
    driver = start()
    while not driver.is_over:
        attempt = following(driver)
        driver.heard(attempt.attempt, state(1, 1.0 / (1 + attempt.number)))
        driver.ended(attempt.attempt, state(6, 0.5 / (1 + attempt.number), ended=True))
    driver.conclude()
    driver.judge()
    assert [row.state for row in driver.study.trials()] == ["complete"] * 6
    last = events[-1]
    assert (last.done, last.running, last.total) == (6, 0, 6)
    assert (last.best, last.best_number) == (0.5 / 6, 5)
    assert last.best_metrics == {"val/score": 0.5 / 6}
    assert last.eta_s == 0.0


def test_no_more_trials_than_asked_for_at_once(start) -> None:
    driver = start()
    following(driver), following(driver)
    assert driver.next() is None
    assert not driver.is_over


def test_events_follow_running_trials(start, events: list[SearchEvent], clock: Clock) -> None:
    driver = start()
    first, second = following(driver), following(driver)
    driver.heard(first.attempt, state(1, 0.9))
    driver.heard(second.attempt, state(1, 0.7))
    assert (events[-1].best, events[-1].best_number) == (0.7, second.number)
    assert events[-1].structures_per_second == 10.0
    assert events[-1].eta_s is None
    n_events = len(events)
    driver.tick()
    assert len(events) == n_events
    clock.now += 1.1
    driver.tick()
    assert len(events) == n_events + 1
    driver.ended(
        second.attempt, state(1, 0.7, ended=True, failure="ValueError: x", kind="ValueError")
    )
    assert events[-1].best == 0.9
    clock.now += 9.0
    driver.ended(first.attempt, state(6, 0.9, ended=True))
    assert events[-1].eta_s == pytest.approx(4 * (1.1 + 10.1) / 2 / 2)


def test_outcomes(start) -> None:
    driver = start()
    pruned, diverged = following(driver), following(driver)
    driver.ended(pruned.attempt, state(2, 0.5))
    failure = {"failure": "DivergedError: val/score is nan", "kind": "DivergedError"}
    driver.ended(diverged.attempt, {"epoch": 0, "metrics": "{}", "ended": True, **failure})
    dead, silent = following(driver), following(driver)
    driver.crashed(dead.attempt, "the process died")
    driver.ended(silent.attempt, {"ended": True})
    rows = driver.study.trials()
    assert [(row.state, row.reason) for row in rows] == [
        ("pruned", "stopped by asha after epoch 2"),
        ("failed", "DivergedError: val/score is nan"),
        ("failed", "the process died"),
        ("failed", "no epoch was trained"),
    ]
    assert [row.value for row in rows] == [0.5, None, None, None]
    driver.conclude()
    assert (driver.study.folder / "leaderboard.csv").exists()
    with pytest.raises(SearchError, match=r"3 of 4 trials failed, at most 50% may; .*no epoch"):
        driver.judge()


def test_a_trial_stopped_at_its_last_epoch_is_complete(start) -> None:
    driver = start()
    driver.ended(following(driver).attempt, state(6, 0.5))
    assert driver.study.trials()[0].state == "complete"


def test_an_interrupted_trial_goes_on_later(start) -> None:
    driver = start()
    attempt = following(driver)
    driver.heard(attempt.attempt, state(1, 0.9))
    driver.stop(INTERRUPTED)
    assert driver.is_over
    driver.ended(attempt.attempt, state(2, 0.8))
    driver.conclude()
    again = start()
    numbers = [following(again).number for _ in range(2)]
    assert attempt.number in numbers
    assert [row.attempts for row in again.study.trials()] == [2, 1]


def test_at_the_time_limit_trials_count_as_they_are(start, space: SearchSpace, clock) -> None:
    limited = replace(space, tune=space.tune.model_copy(update={"time_limit": 1.0}))
    driver = start(limited)
    attempt = following(driver)
    clock.now = 61.0
    driver.tick()
    assert driver.is_over
    driver.ended(attempt.attempt, state(3, 0.8))
    [row] = driver.study.trials()
    assert (row.state, row.reason) == ("pruned", "time limit after epoch 3")
    assert not start().is_over


def test_what_every_trial_meets_ends_the_search(start) -> None:
    driver = start()
    first, second = following(driver), following(driver)
    failure = {"failure": "LabelError: no forces", "kind": "LabelError", "ended": True}
    driver.ended(first.attempt, {"epoch": 0, "metrics": "{}", **failure})
    assert driver.is_over
    driver.ended(second.attempt, {"epoch": 0, "metrics": "{}", **failure})
    driver.conclude()
    with pytest.raises(LabelError, match="^no forces$"):
        driver.judge()
    assert [row.state for row in driver.study.trials()] == ["waiting", "waiting"]


def test_a_retried_trial_reports_no_epoch_twice(start) -> None:
    driver = start()
    attempt = following(driver)
    driver.heard(attempt.attempt, state(1, 0.9))
    driver.heard(attempt.attempt, state(1, 0.9))  # its process died and went on
    driver.heard(attempt.attempt, state(2, 0.8))
    driver.ended(attempt.attempt, state(2, 0.8, ended=True))
    assert driver.study.trials()[0].epochs == 2


def task(space: SearchSpace, folder: Path, **params: object) -> dict[str, object]:
    chosen = {**space.defaults()[0], **params}

    class Given:
        def suggest_categorical(self, name, choices):
            return chosen[name]

        def suggest_int(self, name, low, high, **_):
            return chosen[name]

        def suggest_float(self, name, low, high, **_):
            return chosen[name]

    return {"config": space.sample(Given()), "folder": str(folder)}


def test_a_trial_reports_its_lowest_score(space: SearchSpace, tmp_path: Path) -> None:
    reports: list[dict] = []
    last = run_trial(task(space, tmp_path / "0"), fake_training.train, reports.append)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4, 5, 6]
    scores = [report["score"] for report in reports]
    assert scores == sorted(scores, reverse=True)
    assert last["ended"]
    assert last["wall_s"] == 3.0
    assert json.loads(last["metrics"])["val/score"] == last["score"]


def test_a_stopped_trial_goes_on_where_it_was(space: SearchSpace, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    run_trial(task(space, folder), fake_training.train, lambda report: report["epoch"] == 2)
    assert (folder / "epochs").read_text().split() == ["1", "2"]
    reports: list[dict] = []
    run_trial(task(space, folder), fake_training.train, reports.append)
    assert (folder / "epochs").read_text().split() == ["1", "2", "3", "4", "5", "6"]
    assert reports[-1]["wall_s"] == 3.0
    done = run_trial(task(space, folder), fake_training.train, reports.append)
    assert (done["epoch"], len(reports)) == (6, 4)


def test_a_trial_trains_with_one_thread(space: SearchSpace, tmp_path: Path) -> None:
    seen = []
    run_trial(task(space, tmp_path), lambda config, folder, *, on_epoch: seen.append(config), bool)
    assert seen[0].runtime.n_threads == 1


def test_nan_is_a_failure_with_a_reason(space: SearchSpace, tmp_path: Path) -> None:
    odd = task(space, tmp_path / "0")
    odd["config"]["training"]["batch_size"] = 7
    last = run_trial(odd, fake_training.train_with_nan, bool)
    assert last["failure"] == "DivergedError: val/score is nan after epoch 1"
    assert "score" not in last


def test_an_unexpected_failure_leaves_its_traceback(space: SearchSpace, tmp_path: Path) -> None:
    def train(config, folder, *, on_epoch):
        raise RuntimeError("out of memory")

    last = run_trial(task(space, tmp_path / "0"), train, bool)
    assert last["failure"] == "RuntimeError: out of memory"
    assert "Traceback" in (tmp_path / "0" / "error.txt").read_text()


def test_a_bug_is_not_a_result(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a bug"):
        run_trial(task(space, tmp_path / "0"), fake_training.train_with_a_bug, bool)


def test_history_drops_epochs_that_are_trained_again() -> None:
    history = History([{"epoch": n, "val/score": 1.0 / n, "epoch_s": 1.0} for n in (1, 2, 3, 4)])
    history.add({"epoch": 3, "val/score": 0.5, "epoch_s": 1.0})
    report = history.report()
    assert (report["epoch"], report["score"], report["wall_s"]) == (3, 0.5, 3.0)
    with pytest.raises(DivergedError, match="val/score is inf after epoch 4"):
        history.add({"epoch": 4, "val/score": math.inf})
