"""The part of a trial that runs in its own process: training, and telling how it goes.

Nothing here knows Ray: `report` carries the rows away and says whether to stop.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raypot.config import build
from raypot.durable import write_whole
from raypot.errors import Busy, DivergedError, RaypotError
from raypot.train.folder import RunFolder
from raypot.train.recorder import read_rows
from raypot.train.settings import RunConfig

SCORE = "val/score"
WAIT_FOR_FOLDER_S = 60.0  # for a process of an earlier driver that is about to die
# What one configuration may do to its training; anything else is a bug and shows its traceback.
FAILURES = (RaypotError, ArithmeticError, RuntimeError, MemoryError, OSError, ValueError)


class Train(Protocol):
    """The training function of a trial; `raypot.train.run.train` is one."""

    def __call__(
        self, config: RunConfig, folder: Path, *, on_epoch: Callable[[dict[str, float]], bool]
    ) -> Any:
        """Train in `folder`, calling `on_epoch` after each epoch until it returns True."""


class History:
    """The epochs of a trial, those of its earlier attempts included.

    Args:
        rows: what the run folder holds already.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()) -> None:
        self._rows = {int(row["epoch"]): dict(row) for row in rows}

    def add(self, row: Mapping[str, float]) -> None:
        """Add an epoch.

        Raises:
            DivergedError: its score is not a number.
        """
        epoch, score = int(row["epoch"]), row.get(SCORE, math.nan)
        if not math.isfinite(score):
            raise DivergedError(f"{SCORE} is {score} after epoch {epoch}", epoch=epoch)
        # Epochs beyond a checkpoint that training went back to are trained again.
        self._rows = {old: kept for old, kept in self._rows.items() if old < epoch}
        self._rows[epoch] = dict(row)

    def report(self) -> dict[str, Any]:
        """Return the state of the trial as a flat record.

        `score` is the lowest so far, because that is the model which the folder holds.
        """
        scored = [row for row in self._rows.values() if math.isfinite(row.get(SCORE, math.nan))]
        if not scored:
            return {"epoch": 0, "wall_s": 0.0, "speed": 0.0, "metrics": "{}"}
        best, last = min(scored, key=lambda row: row[SCORE]), self._rows[max(self._rows)]
        finite = {key: value for key, value in best.items() if math.isfinite(value)}
        return {
            "epoch": int(last["epoch"]),
            "score": best[SCORE],
            "speed": last.get("structures_per_second", 0.0),
            "wall_s": sum(row.get("epoch_s", 0.0) for row in self._rows.values()),
            "metrics": json.dumps(finite),
        }


def run_trial(
    task: Mapping[str, Any], train: Train, report: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Train one configuration in its folder, or continue it there.

    Args:
        task: `config`, a resolved run; `folder`.
        train: the training function.
        report: takes the state after each epoch; returns True if the trial shall stop.

    Returns:
        The last state, with `ended = True`, and with `failure` and `kind` if training failed.
    """
    folder = Path(task["folder"])
    history = History(read_rows(RunFolder(folder).metrics))

    def on_epoch(row: dict[str, float]) -> bool:
        history.add(row)
        return report(history.report())

    try:
        config = build(RunConfig, task["config"], str(folder))
        _train_when_free(train, config, folder, on_epoch)
    except FAILURES as error:
        if not isinstance(error, RaypotError):
            _keep_traceback(folder)
        failure = f"{type(error).__name__}: {error}"
        return {**history.report(), "ended": True, "failure": failure, "kind": type(error).__name__}
    return {**history.report(), "ended": True}


def _train_when_free(
    train: Train, config: RunConfig, folder: Path, on_epoch: Callable[[dict[str, float]], bool]
) -> None:
    """Train; wait for a process of a dead driver that still holds the folder."""
    patience_ends = time.monotonic() + WAIT_FOR_FOLDER_S
    while True:
        try:
            train(config, folder, on_epoch=on_epoch)
        except Busy:
            if time.monotonic() > patience_ends:
                raise
            time.sleep(0.2)
        else:
            return


def _keep_traceback(folder: Path) -> None:
    """Write where an unexpected failure happened into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "error.txt", traceback.format_exc().encode())
