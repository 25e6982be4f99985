"""The record of a run: one row per epoch in `metrics.jsonl` and in TensorBoard files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypot.train.durable import failed, write_whole


class Recorder:
    """Append rows; rows beyond the checkpoint that a run goes on from are dropped first.

    Args:
        metrics: the `metrics.jsonl` file.
        tensorboard: folder of the TensorBoard files.
        epochs_done: epochs of the checkpoint; 0 for a new run.
    """

    def __init__(self, metrics: Path, tensorboard: Path, epochs_done: int) -> None:
        self.metrics = metrics
        self.tensorboard = tensorboard
        self.epochs_done = epochs_done
        self._board: Any = None
        kept = [row for row in read_rows(metrics) if row["epoch"] <= epochs_done]
        write_whole(metrics, "".join(_line(row) for row in kept).encode())

    def add(self, row: Mapping[str, float]) -> None:
        """Append the row of an epoch; a value that is not finite is left out.

        Raises:
            StorageError: the disk is full or failed.
        """
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(_line(finite))
            self._add_to_board(finite)
        except OSError as error:
            raise failed(self.metrics, error, "the last checkpoint is kept") from error

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._board is not None:
            self._board.close()

    def _add_to_board(self, row: Mapping[str, float]) -> None:
        if self._board is None:
            # Late, because it takes longer to import than the first step to run.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                str(self.tensorboard), purge_step=self.epochs_done + 1, flush_secs=30
            )
        for key, value in row.items():
            if key != "epoch":
                self._board.add_scalar(key, value, int(row["epoch"]))


def read_rows(metrics: Path) -> list[dict[str, float]]:
    """Read the rows of a `metrics.jsonl`; a last line that was cut off is left out.

    Args:
        metrics: the file; it may be missing.
    """
    if not metrics.exists():
        return []
    rows = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # a crash cut this line off; nothing whole comes after it
    return rows


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row) + "\n"
