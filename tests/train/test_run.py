"""A run from its settings: files, resume, refusals. Stopping and going on changes no bit."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from raypot.config import build
from raypot.data.cards import Card
from raypot.data.store import write_store
from raypot.errors import (
    Busy,
    ConfigError,
    DivergedError,
    LabelError,
    MissingInput,
    OutputError,
    StorageError,
)
from raypot.structures import Structure
from raypot.train import assembly
from raypot.train.checkpoint import load_checkpoint
from raypot.train.folder import RunFolder
from raypot.train.learner import Learner
from raypot.train.model_file import build_member, read_model
from raypot.train.recorder import read_rows
from raypot.train.run import RunConfig, describe, read_run, train

TIMES = {"structures_per_second", "loader_wait_s", "epoch_s"}
MODEL = {"name": "schnet", "schnet": {"n_channels": 8, "n_layers": 1, "n_radial": 6}}


@pytest.fixture
def store(tmp_path: Path, ethanol: list[Structure]) -> Path:
    path = tmp_path / "ethanol.zarr"
    write_store(path, ethanol, Card(name="ethanol"))
    return path


def settings(store: Path, **changes: Any) -> RunConfig:
    tree = {
        "data": {"store": str(store), "split": {"val": 4, "cal": 2, "test": 2}},
        "model": MODEL,
        "loss": {
            "energy": {"weight": {"start": 1.0, "end": 10.0, "epochs": 4}},
            "charges": {"weight": 1.0},
        },
        "training": {
            "n_epochs": 6,
            "batch_size": 5,
            "lr_schedule": {"name": "cosine", "cosine": {"warmup_steps": 3}},
        },
        "runtime": {"dtype": "float64", "device": "cpu"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        branch = tree.setdefault(section, {}) if name else tree
        branch[name or section] = value
    return build(RunConfig, tree, "test")


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], Any, list[dict[str, float]]]:
    """Everything that must not depend on whether the run was stopped."""
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    rows = [
        {k: v for k, v in row.items() if k not in TIMES}
        for row in read_rows(folder / "metrics.jsonl")
    ]
    facts = {k: v for k, v in checkpoint.tree.items() if k != "config"}
    model = read_model(folder / "model.safetensors").members[0]
    return checkpoint.tensors | {f"m.{k}": v for k, v in model.state.items()}, facts, rows


def assert_same(one: Path, other: Path) -> None:
    (tensors, facts, rows), (other_tensors, other_facts, other_rows) = outcome(one), outcome(other)
    assert rows == other_rows
    assert facts == other_facts
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []


@pytest.fixture
def straight(tmp_path: Path, store: Path) -> Path:
    result = train(settings(store), tmp_path / "straight")
    assert (result.stopped, result.epochs) == ("finished", 6)
    return result.folder


def test_a_run_leaves_its_files(store: Path, straight: Path) -> None:
    names = {path.name for path in straight.iterdir() if not path.name.startswith(".")}
    assert names == {
        "run.toml", "split.json", "targets.json", "metrics.jsonl", "tb", "model.safetensors",
        "checkpoints",
    }  # fmt: skip
    assert list((straight / "tb").glob("events.*"))
    assert read_run(straight / "run.toml") == settings(store)
    rows = read_rows(straight / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["weight/energy"] for row in rows] == [1.0, 3.25, 5.5, 7.75, 10.0, 10.0]
    assert rows[-1].keys() >= {
        "epoch", "step", "learning_rate", "train/loss", "train/energy", "train/forces",
        "weight/forces", "val/loss", "val/score", "val/energy_per_atom/rmse", "val/energy/mae",
        "val/forces/rmse", "val/charges/mae", "gradient_norm", *TIMES,
    }  # fmt: skip
    assert rows[-1]["val/score"] < 0.8 * rows[0]["val/score"]
    assert rows[-1]["step"] == 6 * 4


def test_the_model_file_is_the_best_averaged_model(store: Path, straight: Path) -> None:
    again = train(settings(store), straight)
    rows = read_rows(straight / "metrics.jsonl")
    best = min(rows, key=lambda row: row["val/score"])
    assert (again.stopped, again.epochs, again.best_epoch) == ("finished", 6, best["epoch"])
    assert again.val["forces/rmse"] == best["val/forces/rmse"]
    file = read_model(again.model)
    assert file.members[0].metrics == again.val
    assert file.members[0].elements == (1, 6, 8)
    assert {"raypot", "created", "data", "run"} <= file.provenance.keys()
    build_member(file.members[0])


def test_resume_after_pruning_is_bit_equal(tmp_path: Path, store: Path, straight: Path) -> None:
    folder = tmp_path / "halves"
    first = train(settings(store), folder, on_epoch=lambda row: row["epoch"] == 3)
    assert (first.stopped, first.epochs) == ("pruned", 3)
    assert train(settings(store), folder).stopped == "finished"
    assert_same(folder, straight)


@pytest.mark.parametrize(("stop_at", "epochs"), [(3, 0), (4, 0), (7, 1)])
def test_resume_within_an_epoch_is_bit_equal(
    tmp_path: Path, store: Path, straight: Path, stop_at: int, epochs: int
) -> None:
    """The wish to stop is asked for before each of the four steps, and after the last."""
    folder, asked = tmp_path / "parts", iter(range(100))
    first = train(settings(store), folder, should_stop=lambda: next(asked) >= stop_at)
    assert (first.stopped, first.epochs) == ("interrupted", epochs)
    assert train(settings(store), folder).stopped == "finished"
    assert_same(folder, straight)


def test_more_epochs_may_be_asked_for(tmp_path: Path, store: Path) -> None:
    short = {"n_epochs": 2, "batch_size": 5, "lr_schedule": {"name": "constant"}}
    train(settings(store, training=short), tmp_path / "grown")
    for folder in ("grown", "straight"):
        train(settings(store, training={**short, "n_epochs": 4}), tmp_path / folder)
    assert_same(tmp_path / "grown", tmp_path / "straight")
    with pytest.raises(ConfigError, match=r"training\.n_epochs: 4 -> 3"):
        train(settings(store, training={**short, "n_epochs": 3}), tmp_path / "grown")


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from raypot.config import build
from raypot.train.run import RunConfig, train
config = build(RunConfig, json.loads(sys.argv[1]), "test")
steps = iter(range(10**6))
kill_at = int(sys.argv[3])
def ask():
    if next(steps) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
train(config, Path(sys.argv[2]), should_stop=ask)
print("ray" in sys.modules, "pandas" in sys.modules, "optuna" in sys.modules)
"""


def test_resume_after_kill_is_bit_equal_and_needs_no_ray(
    tmp_path: Path, store: Path, straight: Path
) -> None:
    """Killed in the middle of the third epoch, the run goes on from the end of the second."""
    folder, config = tmp_path / "killed", settings(store)
    command = [sys.executable, "-c", SCRIPT, json.dumps(config.tree()), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, "10"], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_rows(folder / "metrics.jsonl")) == 2
    (folder / "checkpoints" / "last.safetensors.partial").write_bytes(b"half")
    done = subprocess.run([*command, "-1"], env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"False", b"False"]
    assert not list(folder.rglob("*.partial"))
    assert_same(folder, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, store: Path, number: signal.Signals) -> None:
    steps = iter(range(100))

    def send() -> bool:
        if next(steps) == 6:
            os.kill(os.getpid(), number)
        return False

    result = train(settings(store), tmp_path / "run", should_stop=send)
    assert (result.stopped, result.signal, result.epochs) == ("interrupted", number.name, 1)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.tree["position"]["start"] == 1


def test_a_full_disk_costs_no_more_than_the_epoch(
    tmp_path: Path, store: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some flushes fail; the run, repeated until it is through, is as if none had."""
    folder, fsync, luck = tmp_path / "full", os.fsync, random.Random(1)

    def sometimes(handle: int) -> None:
        if luck.random() < 0.08:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sometimes)
    failures = 0
    for _ in range(20):
        try:
            train(settings(store), folder)
            break
        except StorageError:
            failures += 1
    assert failures >= 2
    monkeypatch.undo()
    assert_same(folder, straight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"loss__forces": {"weight": 3.0}}, r"loss\.forces\.weight: 1\.0 -> 3\.0"),
        ({"model": {"name": "painn"}}, r"model\.name: 'schnet' -> 'painn'.*--new"),
    ],
)
def test_other_settings_are_refused(
    store: Path, straight: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings(store, **changes), straight)


def test_the_machine_and_the_place_of_the_store_may_change(
    tmp_path: Path, store: Path, straight: Path, ethanol: list[Structure]
) -> None:
    moved = store.rename(tmp_path / "moved.zarr")
    changes = {"runtime": {"dtype": "float64", "n_threads": 1, "device": "cpu"}}
    assert train(settings(moved, **changes), straight).stopped == "finished"
    write_store(tmp_path / "other.zarr", ethanol[:20], Card(name="other"))
    with pytest.raises(ConfigError, match=r"other\.zarr is not the store that this run began with"):
        train(settings(tmp_path / "other.zarr"), straight)


def test_new_moves_the_earlier_run_aside(store: Path, straight: Path) -> None:
    (straight / "notes.txt").write_text("mine")
    before = (straight / "run.toml").read_text()
    result = train(settings(store, training={"n_epochs": 1, "batch_size": 5}), straight, new=True)
    assert result.epochs == 1
    assert (straight / "earlier" / "1" / "run.toml").read_text() == before
    assert (straight / "earlier" / "1" / "model.safetensors").exists()
    assert (straight / "notes.txt").read_text() == "mine"


def test_a_term_without_labels_is_refused_before_training(
    tmp_path: Path, ethanol: list[Structure]
) -> None:
    only_energy = [
        Structure(s.numbers, s.positions, labels={"energy": s.labels["energy"]}) for s in ethanol
    ]
    store = tmp_path / "energies.zarr"
    write_store(store, only_energy, Card(name="energies"))
    one = {"n_epochs": 1, "batch_size": 5}
    with pytest.raises(LabelError, match=r"energies\.zarr, training rows.*forces.*weight"):
        train(settings(store, loss={}, training=one), tmp_path / "run")
    assert not (tmp_path / "run" / "run.toml").exists()
    config = settings(store, loss={"forces": {"weight": 0}}, training=one)
    row = read_rows(train(config, tmp_path / "run").folder / "metrics.jsonl")[0]
    assert "train/forces" not in row
    assert row["val/score"] > 0


def test_places_that_cannot_be_used_are_refused(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written"):
        train(settings(store), tmp_path / "file" / "run")
    with pytest.raises(MissingInput, match=r"nothing\.zarr"):
        train(settings(tmp_path / "nothing.zarr"), tmp_path / "run")
    with pytest.raises(ConfigError, match="no store is named"):
        train(build(RunConfig, {}, "test"), tmp_path / "run")
    with RunFolder(tmp_path / "busy").claim(), pytest.raises(Busy, match=r"going on here.*process"):
        train(settings(store), tmp_path / "busy")


def spoil(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> list[float]:
    """Make the loss of some steps NaN; return the learning rates of all steps, as they come."""
    make, rates = assembly.make_step, []

    def make_bad(*args: Any, **named: Any) -> Any:
        step = make(*args, **named)

        def bad(*inputs: Any) -> Any:
            result = step(*inputs)
            return result._replace(totals=result.totals * nan) if is_bad(len(rates)) else result

        return bad

    update = Learner.update

    def noted(self: Learner, *args: Any) -> torch.Tensor:
        norm = update(self, *args)
        rates.append(self.optimizer.learning_rate)
        return norm

    monkeypatch.setattr(assembly, "make_step", make_bad)
    monkeypatch.setattr(Learner, "update", noted)
    return rates


CONSTANT = {"n_epochs": 3, "batch_size": 5, "lr_schedule": {"name": "constant"}}


def test_a_spike_is_rolled_back_at_half_the_rate(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rates = spoil(monkeypatch, lambda step: step == 6)
    result = train(settings(store, training=CONSTANT), tmp_path / "run")
    assert result.stopped == "finished"
    assert rates == 8 * [1e-3] + 8 * [5e-4]
    assert "back to the end of epoch 1 with half the learning rate" in caplog.text
    assert [row["epoch"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_a_loss_that_does_not_come_back_is_an_error(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = spoil(monkeypatch, lambda step: True)
    with pytest.raises(DivergedError, match=r"epoch 1: .*nan.* after 3 rollbacks; lower"):
        train(settings(store, training=CONSTANT), tmp_path / "run")
    assert rates[::4] == [1e-3, 5e-4, 2.5e-4, 1.25e-4]


def test_patience_ends_a_run_for_good(tmp_path: Path, store: Path) -> None:
    slow = {
        "n_epochs": 50,
        "batch_size": 5,
        "patience": 2,
        "optimizer": {"name": "sgd", "sgd": {"learning_rate": 1e-300}},
        "min_learning_rate": 0.0,
    }
    config = settings(store, training=slow, loss={"energy": {"weight": 0}})
    first = train(config, tmp_path / "run")
    assert first.stopped == "early_stop"
    assert first.epochs < 50
    again = train(config, tmp_path / "run")
    assert (again.stopped, again.epochs) == ("early_stop", first.epochs)


def test_terms_are_off_by_weight_and_not_by_silence() -> None:
    config = build(
        RunConfig, {"loss": {"charges": {"weight": 2.0}, "forces": {"error": "mae"}}}, ""
    )
    weights = {name: term.weight for name, term in config.loss.items()}
    assert weights == {"charges": 2.0, "energy": 1.0, "forces": 1.0}
    assert build(RunConfig, config.tree(), "again") == config
    assert read_run(None).loss.keys() == {"energy", "forces"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.n_epoch=3", r"\[training\] n_epoch: unknown key; did you mean n_epochs\?"),
        ("model.name=pain", r"did you mean painn\?"),
        ("loss.force.weight=1", r"did you mean forces\?"),
        ("training.ema_decay=1.5", r"\[training\] ema_decay: .*less than 1.*got 1.5"),
        ("training.optimizer.name=adamx", r"did you mean adam"),
        ("runtime.device=tpu", r"\[runtime\] device"),
    ],
)
def test_wrong_settings_are_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run(None, (override,))


def test_settings_come_from_file_overrides_and_option(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('seed = 3\n[data]\nstore = "a.zarr"\n[training]\nn_epochs = 7\n')
    config = read_run(path, ("training.n_epochs=9",), "b.zarr")
    assert (config.seed, config.training.n_epochs, config.data.store) == (3, 9, "b.zarr")


def test_a_dry_run_describes_itself(store: Path) -> None:
    description = describe(settings(store))
    assert description["rows"] == {"train": 16, "val": 4, "cal": 2, "test": 2}
    assert description["steps_per_epoch"] == 4
    assert json.dumps(description)
