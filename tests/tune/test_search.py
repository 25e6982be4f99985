"""Searches on a local Ray cluster, most of them cut short."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import fake_training
import pytest

from raypot.errors import ConfigError, MissingInput, SearchError, UsageError
from raypot.train.recorder import read_rows
from raypot.tune import search
from raypot.tune.events import SearchEvent
from raypot.tune.journal import Attempt
from raypot.tune.search_trials import TRIAL_SCHEDULERS, PastController, PastTrial, replay
from raypot.tune.space import SearchSpace, TuneConfig
from raypot.tune.study import Study

SCRIPT = Path(__file__).with_name("searching.py")


def with_settings(space: SearchSpace, **settings: object) -> SearchSpace:
    return replace(space, tune=space.tune.model_copy(update=settings))


def started(folder: Path) -> list[str]:
    """Process and second of every start of a trial in its folder."""
    file = folder / "starts"
    return file.read_text().splitlines() if file.exists() else []


def processes(folder: Path) -> set[str]:
    """Every process in which a trial of the study was started."""
    return {start.split()[0] for trial in folder.glob("trials/*") for start in started(trial)}


def test_every_scheduler_of_the_space_has_a_builder() -> None:
    assert set(TRIAL_SCHEDULERS) == set(get_args(TuneConfig.model_fields["scheduler"].annotation))


def test_a_store_is_needed(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[data\] store: is not set; .* --data STORE"):
        search.search(space, tmp_path / "study")


def test_a_missing_store_is_found_before_anything_starts(space_file: Path, tmp_path: Path) -> None:
    space = SearchSpace.read(space_file, (), str(tmp_path / "nothing.zarr"))
    with pytest.raises(MissingInput, match="nothing.zarr"):
        search.search(space, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_ray_client_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ray://head:1: a search runs within .*ray job submit"):
        search._search(space, tmp_path / "study", "ray://head:1", None, fake_training.train)


def test_settings_given_to_a_search_are_checked(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings of the search: n_trials: .* got 0"):
        search.search(space, tmp_path / "study", n_trials=0)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_new_scheduler_learns_from_earlier_trials(
    name: str, space: SearchSpace, tmp_path: Path
) -> None:
    study = Study.start(tmp_path, space)
    for value in (0.1, 0.2, 0.3):
        attempt = study.journal.propose(space)
        assert attempt is not None
        for epoch in (1, 2, 3):
            study.journal.report(attempt.attempt, epoch, value)
        study.journal.requeue(attempt.attempt, "driver died")
    verdicts = []
    for score in (0.05, 0.9):
        scheduler = TRIAL_SCHEDULERS[name](space.tune, 6)
        replay(study, scheduler)
        now, controller = PastTrial("now"), PastController()
        scheduler.on_trial_add(controller, now)
        verdicts.append(scheduler.on_trial_result(controller, now, {"epoch": 2, "score": score}))
    assert verdicts == ["CONTINUE", "STOP"]


@pytest.mark.ray
def test_a_search(space_file: Path, tmp_path: Path) -> None:
    space = SearchSpace.read(
        space_file, ("tune.n_trials=12", "training.batch_size={choice=[7, 8, 16]}")
    )
    before, events = dict(os.environ), []
    study = search._search(
        space, tmp_path / "study", "local", events.append, fake_training.train_with_nan
    )
    assert dict(os.environ) == before
    rows = study.trials()
    states = Counter(row.state for row in rows)
    assert sum(states.values()) == 12
    assert states["complete"] >= 1
    assert states["pruned"] >= 3
    assert 1 <= states["failed"] <= 6
    for row in rows:
        assert ("nan" in row.reason) == (row.state == "failed")
        if row.state == "complete":
            assert row.epochs == 6
        if row.state == "pruned":
            assert 2 <= row.epochs < 6
        if row.has_model:
            assert (row.folder / "model.safetensors").exists()
            assert row.value == min(
                one["val/score"] for one in read_rows(row.folder / "metrics.jsonl")
            )
    assert len({str(row.params) for row in rows}) == 12
    assert len(processes(study.folder)) <= 3
    assert_events(events)
    assert (study.folder / "best.toml").exists()
    again = search._search(space, study.folder, "local", None, fake_training.train_with_a_bug)
    assert again.summary()["n_trials"] == 12


def assert_events(events: list[SearchEvent]) -> None:
    assert events[-1].done == events[-1].total == 12
    assert events[-1].running == 0
    assert max(event.running for event in events) == 2
    assert [event.done for event in events] == sorted(event.done for event in events)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_process_that_dies_goes_on(space: SearchSpace, tmp_path: Path) -> None:
    space = with_settings(space, n_trials=2, scheduler="none")
    study = search._search(
        space, tmp_path / "study", "local", None, fake_training.train_and_die_once
    )
    for row in study.trials():
        assert row.state == "complete"
        assert (row.folder / "epochs").read_text().split() == ["1", "2", "3", "4", "5", "6"]
        assert len(started(row.folder)) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_bug_ends_trials_and_is_told(space: SearchSpace, tmp_path: Path) -> None:
    space = with_settings(space, n_trials=1)
    with pytest.raises(SearchError, match="1 of 1 trials failed.*TypeError: a bug"):
        search._search(space, tmp_path / "study", "local", None, fake_training.train_with_a_bug)
    assert (tmp_path / "study" / "trials.parquet").exists()


@pytest.fixture
def drive(space_file: Path, tmp_path: Path, monkeypatch) -> Callable[[], subprocess.Popen]:
    """Start a driver of eight trials whose epochs take a while."""
    monkeypatch.setenv("FAKE_EPOCH_S", "0.2")
    text = space_file.read_text().replace("n_trials = 6", "n_trials = 8")
    space_file.write_text(text.replace("[model]\n", 'scheduler = "none"\n\n[model]\n', 1))
    command = [sys.executable, str(SCRIPT), str(space_file), str(tmp_path / "study"), "train"]

    def drive() -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0)

    return drive


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def n_finished(folder: Path) -> int:
    if not (folder / "study.journal").exists():
        return 0
    try:
        return sum(row.is_finished for row in Study.open(folder).trials())
    except MissingInput:
        return 0


def assert_whole(folder: Path) -> None:
    """No trial lost, none run twice, and nothing trained in an epoch more than a crash costs."""
    rows = Study.open(folder).trials()
    assert [row.state for row in rows] == ["complete"] * 8
    assert len({str(row.params) for row in rows}) == 8
    for row in rows:
        epochs = [one["epoch"] for one in read_rows(row.folder / "metrics.jsonl")]
        assert epochs == [1, 2, 3, 4, 5, 6]
        assert 1 <= len(started(row.folder)) <= row.attempts
        trained = (row.folder / "epochs").read_text().split()
        assert len(trained) <= 6 + row.attempts - 1
    assert len(list((folder / "trials").iterdir())) == 8


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_goes_on(drive, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    first = drive()
    wait_for(lambda: n_finished(folder) >= 3)
    first.kill()
    first.communicate()
    orphans = processes(folder)
    finished = {row.number: row for row in Study.open(folder).trials() if row.is_finished}
    second = drive()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert_whole(folder)
    rows = {row.number: row for row in Study.open(folder).trials()}
    assert all(rows[number] == row for number, row in finished.items())
    assert sum(row.attempts for row in rows.values()) > 8
    assert not [pid for pid in orphans if Path(f"/proc/{pid}").exists()]
    attempts = Study.open(folder).journal.attempts
    assert "driver died" in {one.user_attrs.get("reason") for one in attempts}


def interrupt(driver: subprocess.Popen, folder: Path, number: int) -> int:
    """Send a signal while trials run; return the exit code of the driver."""
    wait_for(lambda: n_finished(folder) >= 2)
    os.killpg(driver.pid, number)  # as a terminal does it: to everything that was started
    driver.communicate(timeout=60)
    assert (folder / "leaderboard.csv").exists()
    assert not [row for row in Study.open(folder).trials() if row.state == "running"]
    return driver.returncode


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_driver_goes_on(drive, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    assert interrupt(drive(), folder, signal.SIGINT) == -signal.SIGINT
    second = drive()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert_whole(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_terminated_driver_says_so(drive, tmp_path: Path) -> None:
    assert interrupt(drive(), tmp_path / "study", signal.SIGTERM) == 143


def test_attempts_are_plain_values(space: SearchSpace, tmp_path: Path) -> None:
    attempt = Study.start(tmp_path, space).journal.propose(space)
    assert isinstance(attempt, Attempt)
    assert attempt.folder == tmp_path / "trials" / "0"
