"""The record of a run: one row per epoch in `metrics.jsonl` and in TensorBoard files."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypot.durable import failed, write_whole


class Recorder:
    """Append rows; rows beyond the checkpoint that a run goes on from are dropped first.

    Args:
        metrics: the `metrics.jsonl` file.
        tensorboard: folder of the TensorBoard files.
        epochs_done: epochs of the checkpoint; 0 for a new run.

    Raises:
        StorageError: the disk is full or failed.
    """

    def __init__(self, metrics: Path, tensorboard: Path, epochs_done: int) -> None:
        self.metrics = metrics
        kept = [row for row in read_rows(metrics) if row["epoch"] <= epochs_done]
        write_whole(metrics, "".join(_line(row) for row in kept).encode())
        try:
            self._board = _Board(tensorboard, epochs_done)
        except OSError as error:
            raise failed(tensorboard, error, "nothing is lost") from error

    def add(self, row: Mapping[str, float]) -> None:
        """Append the row of an epoch; a value that is not finite is left out.

        Raises:
            StorageError: the disk is full or failed.
        """
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(_line(finite))
            self._board.add(finite)
        except OSError as error:
            raise failed(self.metrics, error, "the last checkpoint is kept") from error

    def close(self) -> None:
        """Close the TensorBoard file, in which every row is already on the disk."""
        self._board.close()


class _Board:
    """A TensorBoard file, written row by row.

    `SummaryWriter` hands events to a thread; when the disk is full that thread ends unseen, and
    the training waits for it for ever. Here a failed write is an error where it happens.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        # Late, because nothing needs them before the first epoch is over.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        self._writer: Any = EventsWriter(str(folder / "events"), f".{epochs_done}")
        # The viewer drops what an interrupted run wrote beyond this epoch.
        log = SessionLog(status=SessionLog.START)
        self._writer.write_event(
            Event(wall_time=time.time(), step=epochs_done + 1, session_log=log)
        )

    def add(self, row: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in row.items()
            if key != "epoch"
        ]
        summary = Summary(value=values)
        self._writer.write_event(
            Event(wall_time=time.time(), step=int(row["epoch"]), summary=summary)
        )
        self._writer.flush()

    def close(self) -> None:
        self._writer._py_recordio_writer.close()


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
