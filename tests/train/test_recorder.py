"""Rows are appended, and those beyond a checkpoint are dropped when a run goes on."""

import math
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from raypot.errors import StorageError
from raypot.train.recorder import Recorder, read_rows


def record(folder: Path, epochs_done: int, epochs: list[int]) -> None:
    recorder = Recorder(folder / "metrics.jsonl", folder / "tb", epochs_done)
    for epoch in epochs:
        recorder.add({"epoch": epoch, "val/loss": 1 / epoch, "gradient_norm": math.inf})
    recorder.close()


def events(folder: Path) -> list[Event]:
    """Decode the length-prefixed records of all TensorBoard files."""
    found = []
    for path in sorted((folder / "tb").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            length = int.from_bytes(data[position : position + 8], "little")
            found.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += length + 16
    return found


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    record(tmp_path, 0, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "val/')
    record(tmp_path, 2, [3, 4])
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"epoch": epoch, "val/loss": 1 / epoch} for epoch in (1, 2, 3, 4)
    ]


def test_tensorboard_sees_the_same(tmp_path: Path) -> None:
    record(tmp_path, 0, [1, 2])
    record(tmp_path, 1, [2])
    found = events(tmp_path)
    scalars = [(e.step, e.summary.value[0].simple_value) for e in found if e.HasField("summary")]
    assert scalars == [(1, 1.0), (2, 0.5), (2, 0.5)]
    assert [e.step for e in found if e.HasField("session_log")] == [1, 2]
    assert {value.tag for e in found for value in e.summary.value} == {"val/loss"}


def test_a_full_disk_is_an_error_and_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl", tmp_path / "tb", 0)

    def fail(self: RecordWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", fail)
    for epoch in range(1, 4):
        with pytest.raises(StorageError, match=r"metrics\.jsonl.*the last checkpoint is kept"):
            recorder.add({"epoch": epoch, **{f"val/{k}": 0.0 for k in range(20)}})
    monkeypatch.undo()
    recorder.close()
