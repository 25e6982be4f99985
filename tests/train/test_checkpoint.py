"""The newest whole checkpoint is found again after every kind of accident."""

import errno
import logging
import os
import pathlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from raypot.errors import CheckpointError, StorageError
from raypot.train.checkpoint import LAST, PREVIOUS, load_checkpoint, save_checkpoint
from raypot.train.tensor_file import TensorFile


def of_epoch(epoch: int) -> TensorFile:
    return TensorFile({"epoch": epoch}, {"weight": torch.full((50,), float(epoch))})


def loaded_epoch(folder: Path) -> int:
    content = load_checkpoint(folder)
    assert content is not None
    assert torch.equal(content.tensors["weight"], torch.full((50,), float(content.tree["epoch"])))
    return int(content.tree["epoch"])


def test_the_newest_is_loaded_and_one_before_it_is_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for epoch in range(4):
        save_checkpoint(tmp_path, of_epoch(epoch))
    assert loaded_epoch(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_one_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sixteenth: int
) -> None:
    save_checkpoint(tmp_path, of_epoch(1))
    save_checkpoint(tmp_path, of_epoch(2))
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: len(data) * sixteenth // 16])
    with caplog.at_level(logging.WARNING):
        assert loaded_epoch(tmp_path) == 1
    assert "going on from the checkpoint before it" in caplog.text
    save_checkpoint(tmp_path, of_epoch(2))
    assert loaded_epoch(tmp_path) == 2


def test_without_a_whole_one_the_user_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, of_epoch(1))
    (tmp_path / LAST).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole.*--new"):
        load_checkpoint(tmp_path)


FAILING = ["open", "write", "fsync", "replace"]


@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_full_disk_at_the_nth_call_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    save_checkpoint(tmp_path, of_epoch(1))
    fail_at(monkeypatch, call, nth)
    happens = nth <= {"open": 1, "write": 1, "fsync": 2, "replace": 2}[call]
    with pytest.raises(StorageError, match="No space left on device") if happens else nullcontext():
        save_checkpoint(tmp_path, of_epoch(2))
    monkeypatch.undo()
    assert loaded_epoch(tmp_path) in ((1, 2) if happens else (2,))
    assert not list(tmp_path.glob("*.partial"))


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, nth: int) -> None:
    """Make the n-th call of an operation of the system fail as a full disk does."""
    place, name = {
        "open": ("pathlib.Path.open", None),
        "write": ("pathlib.Path.open", "write"),
        "fsync": ("os.fsync", None),
        "replace": ("pathlib.Path.replace", None),
    }[call]
    original = {"os.fsync": os.fsync, "pathlib.Path.open": pathlib.Path.open,
                "pathlib.Path.replace": pathlib.Path.replace}[place]  # fmt: skip
    count = 0

    def maybe(*args: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == nth and name is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        result = original(*args, **named)  # type: ignore[operator]
        return FullDisk(result) if count == nth and name == "write" else result

    monkeypatch.setattr(place, maybe)


class FullDisk:
    """A file whose writes fail."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # type: ignore[attr-defined]

    def write(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
