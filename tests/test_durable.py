"""Files are whole or not there, whatever call fails."""

import errno
import os
from pathlib import Path

import pytest

from raypot.durable import write_json, write_whole
from raypot.errors import OutputError, StorageError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_whole(path, b"old")
    write_json(path, {"å": 1.5})
    assert path.read_text(encoding="utf-8") == '{\n "å": 1.5\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "facts.json"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StorageError, match=r"facts\.json.*No space left.*free some space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_a_place_that_cannot_hold_files_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/facts\.json: cannot be written"):
        write_whole(tmp_path / "file" / "facts.json", b"new")
