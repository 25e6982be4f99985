"""Trainings that cost nothing: the score is a formula of the settings.

They live in a module of their own, so that trial processes can import them.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from raypot.errors import LabelError
from raypot.train.folder import RunFolder
from raypot.train.recorder import read_rows
from raypot.train.settings import RunConfig

OnEpoch = Callable[[dict[str, float]], bool]


def score(config: RunConfig, epoch: int) -> float:
    """Best at a learning rate of 1e-3; falls with the epochs."""
    rate = config.training.optimizer.settings.learning_rate
    return abs(math.log10(rate) + 3.0) + 0.1 * config.training.batch_size / 64 + 1.0 / epoch


def train(config: RunConfig, folder: Path, *, on_epoch: OnEpoch) -> None:
    """Train at no cost, going on after the last epoch that the folder holds."""
    run = RunFolder(folder)
    with run.claim():
        rows = read_rows(run.metrics)
        note(folder, "starts", f"{os.getpid()} {time.time()}")
        for epoch in range(len(rows) + 1, config.training.n_epochs + 1):
            time.sleep(float(os.environ.get("FAKE_EPOCH_S", "0.0")))
            row = {
                "epoch": epoch,
                "val/score": score(config, epoch),
                "val/forces/rmse": 0.1,
                "structures_per_second": 10.0,
                "epoch_s": 0.5,
            }
            note(folder, "epochs", str(epoch))
            run.model.write_bytes(b"model")
            with run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if on_epoch(row):
                return


def train_with_nan(config: RunConfig, folder: Path, *, on_epoch: OnEpoch) -> None:
    """Diverge where the batch size is odd."""
    if config.training.batch_size % 2:
        folder.mkdir(parents=True)
        on_epoch({"epoch": 1, "val/score": math.nan})
    train(config, folder, on_epoch=on_epoch)


def train_and_die_once(config: RunConfig, folder: Path, *, on_epoch: OnEpoch) -> None:
    """Take the process down after the second epoch of the first start."""

    def die(row: dict[str, float]) -> bool:
        if row["epoch"] == 2 and len((folder / "starts").read_text().splitlines()) == 1:
            os._exit(9)
        return on_epoch(row)

    train(config, folder, on_epoch=die)


def train_with_a_bug(config: RunConfig, folder: Path, *, on_epoch: OnEpoch) -> None:
    """Raise what no configuration explains."""
    raise TypeError("a bug")


def train_without_labels(config: RunConfig, folder: Path, *, on_epoch: OnEpoch) -> None:
    """Meet what every trial meets."""
    raise LabelError("store: no forces; set their weight to 0")


def note(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
