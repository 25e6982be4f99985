import csv
import json
from pathlib import Path

import optuna
import pyarrow.parquet
import pytest
from optuna.trial import TrialState

from raypot.errors import CheckpointError, ConfigError, MissingInput
from raypot.train.settings import read_run
from raypot.tune.journal import MAX_ATTEMPTS, Attempt
from raypot.tune.space import SearchSpace
from raypot.tune.study import Study

METRICS = {"val/score": 0.2, "val/forces/rmse": 0.05, "val/energy_per_atom/rmse": 0.004}


@pytest.fixture
def study(space: SearchSpace, tmp_path: Path) -> Study:
    (tmp_path / "study").mkdir()
    return Study.start(tmp_path / "study", space)


def propose(study: Study, space: SearchSpace) -> Attempt:
    attempt = study.journal.propose(space)
    assert attempt is not None
    return attempt


def finish(study: Study, attempt: Attempt, value: float, state=TrialState.COMPLETE) -> None:
    study.journal.report(attempt.attempt, 2, value)
    result = {"metrics": METRICS, "epochs": 2, "wall_s": 3.0}
    reason = "" if state == TrialState.COMPLETE else "because"
    study.journal.finish(attempt.attempt, state, result, reason, value)


def test_defaults_go_first(study: Study, space: SearchSpace) -> None:
    assert propose(study, space).config["model"]["name"] == "painn"
    assert propose(study, space).config["model"]["name"] == "schnet"
    rows = study.trials()
    assert [row.params for row in rows] == space.defaults()
    assert [row.state for row in rows] == ["running", "running"]


def test_opening_again_does_not_repeat_the_defaults(study: Study, space: SearchSpace) -> None:
    propose(study, space)
    again = Study.start(study.folder, space)
    assert propose(again, space).config["model"]["name"] == "schnet"
    assert not again.journal.has_waiting()


def test_rows_tell_outcomes(study: Study, space: SearchSpace) -> None:
    first, second, third = (propose(study, space) for _ in range(3))
    finish(study, first, 0.3)
    finish(study, second, 0.2, TrialState.PRUNED)
    finish(study, third, 0.1, TrialState.FAIL)
    complete, pruned, failed = Study.open(study.folder).trials()
    assert (complete.state, complete.value, complete.epochs) == ("complete", 0.3, 2)
    assert (pruned.state, pruned.value, pruned.reason) == ("pruned", 0.2, "because")
    assert (failed.state, failed.value, failed.reason) == ("failed", None, "because")
    assert complete.metrics == METRICS
    assert complete.folder == study.folder / "trials" / "0"
    assert [row.number for row in study.leaderboard()] == [1, 0]
    assert study.best is not None
    assert study.best.number == 1
    summary = study.summary()
    assert (summary["n_complete"], summary["n_pruned"], summary["n_failed"]) == (1, 1, 1)
    assert summary["best"]["forces"] == {"rmse": 0.05, "mae": None, "unit": "eV/Å"}
    assert summary["epochs_total"] == 6
    json.dumps(summary)


def test_dead_trials_are_requeued_with_number_and_folder(study: Study, space: SearchSpace) -> None:
    first, second = propose(study, space), propose(study, space)
    finish(study, first, 0.3)
    study.journal.report(second.attempt, 1, 0.9)
    again = Study.start(study.folder, space)
    assert again.journal.reconcile() == [second.attempt]
    assert again.journal.reconcile() == []
    waiting = again.trials()[1]
    assert (waiting.state, waiting.number, waiting.attempts) == ("waiting", second.number, 1)
    retry = propose(again, space)
    assert retry.attempt != second.attempt
    assert retry.number == second.number
    assert retry.folder == second.folder
    assert retry.config == second.config
    finish(again, retry, 0.2)
    rows = again.trials()
    assert [(row.number, row.state, row.attempts) for row in rows] == [
        (0, "complete", 1),
        (1, "complete", 2),
    ]
    dead = again.journal.attempts[second.attempt]
    assert (dead.state, dead.user_attrs["reason"]) == (TrialState.FAIL, "driver died")
    assert again.journal.attempts[retry.attempt].user_attrs["retry_of"] == second.attempt


def test_a_crash_between_queueing_and_closing_loses_and_repeats_nothing(
    study: Study, space: SearchSpace, monkeypatch
) -> None:
    attempt = propose(study, space)
    with monkeypatch.context() as patch:
        patch.setattr(study.journal.optuna, "tell", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division"):
            study.journal.reconcile()
    again = Study.start(study.folder, space)
    again.journal.reconcile()
    retries = [one for one in again.journal.attempts if "retry_of" in one.user_attrs]
    assert [one.user_attrs["number"] for one in retries] == [attempt.number]


def test_a_driver_that_died_while_it_asked_loses_no_default(
    study: Study, space: SearchSpace
) -> None:
    study.journal.optuna.ask()  # taken from the queue, nothing noted yet
    study.journal.reconcile()
    models = {propose(study, space).config["model"]["name"] for _ in range(2)}
    assert models == {"painn", "schnet"}
    assert len(study.trials()) == 2


def test_a_trial_that_kills_every_driver_ends(study: Study, space: SearchSpace) -> None:
    for _ in range(2 * MAX_ATTEMPTS):
        propose(study, space)
        study.journal.reconcile()
    row = study.trials()[0]
    assert (row.number, row.state, row.reason) == (0, "failed", "driver died")
    assert row.attempts == MAX_ATTEMPTS


FINITE = """
[model]
name = "schnet"

[model.schnet]
n_channels = { choice = [16, 48] }

[training]
batch_size = { choice = [8, 16] }
optimizer = { name = "adamw", adamw = { learning_rate = { choice = [1e-3, 1e-2] } } }
"""


def test_no_configuration_is_proposed_twice(space_file: Path, tmp_path: Path) -> None:
    space_file.write_text(FINITE)
    space = SearchSpace.read(space_file)
    assert space.size() == 8
    study = Study.start(tmp_path, space)
    seen = []
    while (attempt := study.journal.propose(space)) is not None:
        seen.append(json.dumps(attempt.config, sort_keys=True))
        finish(study, attempt, 0.1 * len(seen))
    assert len(seen) == len(set(seen)) == 8
    assert len(study.trials()) == 8


def test_proposals_do_not_depend_on_restarts(space: SearchSpace, tmp_path: Path) -> None:
    def search(folder: Path, restart: bool) -> list[dict]:
        folder.mkdir()
        study = Study.start(folder, space)
        for index in range(12):
            if restart:
                study = Study.start(folder, space)
                study.journal.reconcile()
            finish(study, propose(study, space), 1.0 / (1 + index))
        return [row.params for row in study.trials()]

    assert search(tmp_path / "a", False) == search(tmp_path / "b", True)


def test_another_space_is_refused_with_the_differences(study: Study, space_file: Path) -> None:
    other = SearchSpace.read(space_file, ("training.n_epochs=7",))
    with pytest.raises(ConfigError, match=r"another space \(training.n_epochs: 6 -> 7\)"):
        Study.start(study.folder, other)
    more = SearchSpace.read(space_file, ("tune.n_trials=50",))
    Study.start(study.folder, more)


def test_an_empty_folder_holds_no_study(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no study here"):
        Study.open(tmp_path)


def test_a_torn_last_line_is_cut_off(study: Study, space: SearchSpace) -> None:
    attempt = propose(study, space)
    journal = study.folder / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":8,"tri')
    again = Study.start(study.folder, space)
    assert journal.read_bytes() == whole
    finish(again, again_attempt := attempt, 0.4)
    assert Study.open(study.folder).trials()[again_attempt.number].value == 0.4


def test_every_prefix_of_the_journal_is_a_study(study: Study, space: SearchSpace) -> None:
    for value in (0.3, 0.2, 0.1):
        finish(study, propose(study, space), value)
    lines = (study.folder / "study.journal").read_bytes().splitlines(keepends=True)
    for stop in range(len(lines) + 1):
        (study.folder / "study.journal").write_bytes(b"".join(lines[:stop]))
        again = Study.start(study.folder, space)
        again.journal.reconcile()
        numbers = [row.number for row in again.trials()]
        assert len(numbers) == len(set(numbers))
        models = {propose(again, space).config["model"]["name"] for _ in range(2)}
        assert len(again.trials()) >= 2
        assert models


def test_a_damaged_journal_is_refused(study: Study, space: SearchSpace) -> None:
    (study.folder / "study.journal").write_text("not json\nat all\n")
    with pytest.raises(CheckpointError, match="not a journal of a study"):
        Study.open(study.folder)


def test_tables(study: Study, space: SearchSpace) -> None:
    finish(study, propose(study, space), 0.3)
    finish(study, propose(study, space), 0.2)
    finish(study, propose(study, space), 0.1, TrialState.FAIL)
    study.write_tables()
    table = pyarrow.parquet.read_table(study.folder / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["complete", "complete", "failed"]
    assert table[0]["params.model.painn.n_channels"] is not None
    assert table[1]["params.model.painn.n_channels"] is None
    assert table[0]["val/forces/rmse"] == 0.05
    with (study.folder / "leaderboard.csv").open() as file:
        board = list(csv.DictReader(file))
    assert [(row["rank"], row["number"]) for row in board] == [("1", "1"), ("2", "0"), ("", "2")]
    assert board[2]["reason"] == "because"
    best = read_run(study.folder / "best.toml")
    assert best.model.name == "schnet"
    assert best.tree() == study.trials()[1].config


def test_tables_of_an_empty_study(study: Study) -> None:
    study.write_tables()
    assert pyarrow.parquet.read_table(study.folder / "trials.parquet").num_rows == 0
    assert not (study.folder / "best.toml").exists()


def test_optuna_reads_the_journal(study: Study, space: SearchSpace) -> None:
    finish(study, propose(study, space), 0.3)
    backend = optuna.storages.journal.JournalFileBackend(str(study.folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    [seen] = optuna.get_all_study_summaries(storage)
    assert seen.best_trial is not None
    assert seen.best_trial.value == 0.3


def test_reading_writes_nothing(study: Study, space: SearchSpace) -> None:
    finish(study, propose(study, space), 0.3)
    before = (study.folder / "study.journal").read_bytes()
    Study.open(study.folder).summary()
    assert (study.folder / "study.journal").read_bytes() == before
