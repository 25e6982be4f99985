"""A store appears whole or not at all: full disks, dead processes, two writers."""

import errno
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypot.data.cards import Card
from raypot.data.store import Store, verify, write_store
from raypot.errors import Busy, OutputError, StorageError
from raypot.structures import Structure

WATER = Structure(
    [8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]], labels={"energy": 1.0, "charges": [0, 0, 0]}
)


def fail_at(monkeypatch: pytest.MonkeyPatch, n: int, code: int) -> list[str]:
    """Make the n-th file operation that changes the disk fail; return the log of operations."""
    done: list[str] = []

    def counted(owner: Any, name: str, counts: Any = lambda *a, **k: True) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs):
                done.append(name)
                if len(done) == n:
                    raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the real one is slow
    counted(Path, "open", lambda path, mode="r", *a, **k: "w" in mode)
    counted(Path, "mkdir")
    counted(Path, "replace")
    counted(Path, "rename")
    counted(os, "fsync")
    counted(os, "ftruncate")
    return done


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_failure_of_any_write_leaves_nothing(step: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        done = fail_at(patch, -1, errno.ENOSPC)
        write_store(tmp_path / "whole", [WATER], Card())
        n_operations = len(done)
    assert n_operations > 80
    for n in range(1, n_operations + 1, step):
        with pytest.MonkeyPatch.context() as patch:
            done = fail_at(patch, n, errno.ENOSPC if n % 2 else errno.EIO)
            with pytest.raises(StorageError, match="s: ") as caught:
                write_store(tmp_path / "s", [WATER], Card())
        assert caught.value.exit_code == 74
        assert [p.name for p in tmp_path.iterdir()] == ["whole"], f"operation {n}, {done[-1]}"


def test_the_message_says_how_much_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 60, errno.ENOSPC)
    with pytest.raises(StorageError, match=r"writing failed after \d+ bytes: No space left on dev"):
        write_store(tmp_path / "s", [WATER], Card())


def test_a_faulty_source_leaves_nothing(tmp_path: Path) -> None:
    def structures() -> Iterator[Structure]:
        yield WATER
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", structures(), Card())
    assert list(tmp_path.iterdir()) == []


KILLED = """
import json, os, signal, sys
from pathlib import Path
from raypot.data.cards import Card
from raypot.data.store import Store, write_store
from raypot.data.store_files import LocalFiles
from raypot.data.store_manifest import Manifest, check_files
from raypot.structures import Structure

folder = Path(sys.argv[1])
water = Structure([8, 1, 1], [[0, 0, 0], [1, 0, 0], [0, 1, 0]], labels={"energy": 1.0})
os.fsync = lambda descriptor: None  # the real one is slow
outcomes, n, killed = [], 1, True
while killed:
    child = os.fork()
    if child == 0:
        done = [0]
        def counted(owner, name, n=n):
            real = getattr(owner, name)
            def call(*args, **kwargs):
                done[0] += 1
                if done[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            setattr(owner, name, call)
        for owner, name in ((Path, "open"), (Path, "rename"), (os, "fsync"), (os, "write")):
            counted(owner, name)
        write_store(folder / "s", [water], Card())
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
    hidden = [p.name for p in folder.iterdir() if p.name != "s"]
    if (folder / "s").exists():
        files = LocalFiles(folder / "s")
        check_files(Manifest.read(files, "s"), files, "s")
        if killed:
            (folder / "s").rename(folder / f"whole-{n}")
    outcomes.append([killed, len([name for name in hidden if "staging" in name])])
    n += 13
print(json.dumps(outcomes))
"""


def test_a_kill_at_any_moment_leaves_nothing_or_a_whole_store(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    outcomes = json.loads(result.stdout)
    assert len(outcomes) > 8
    assert any(n_leftover for _, n_leftover in outcomes)
    assert all(n_leftover <= 1 for _, n_leftover in outcomes)  # each import cleans up first
    assert outcomes[-1] == [False, 0]
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()
    assert Store.open(tmp_path / "s").n_structures == 1


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    for name in (".s.staging-99999999", ".s.staging-1"):
        (tmp_path / name / "atoms").mkdir(parents=True)
        (tmp_path / name / "atoms" / "x").write_bytes(b"x")
    (tmp_path / ".s.lock").write_text("process 99999999 on nowhere")
    (tmp_path / ".other.staging-1").mkdir()
    write_store(tmp_path / "s", [WATER], Card())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.staging-1", "s"]


def test_the_second_of_two_writers_is_told(tmp_path: Path) -> None:
    def structures() -> Iterator[Structure]:
        with pytest.raises(Busy, match=rf"s: being written by process {os.getpid()} on .* since"):
            write_store(tmp_path / "s", [WATER], Card())
        write_store(tmp_path / "t", [WATER], Card())  # another one beside it does not matter
        yield WATER

    assert write_store(tmp_path / "s", structures(), Card()).n_structures == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "t"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def structures() -> Iterator[Structure]:
        yield WATER
        (tmp_path / "s").mkdir()

    with pytest.raises(OutputError, match="s: exists already"):
        write_store(tmp_path / "s", structures(), Card())
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_places_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be created here: .*choose another folder"):
        write_store(tmp_path / "file" / "s", [WATER], Card())
    with pytest.raises(OutputError, match="File name too long"):
        write_store(tmp_path / ("x" * 300), [WATER], Card())
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="link: exists already"):
        write_store(tmp_path / "link", [WATER], Card())
    fail_at(monkeypatch, 1, errno.EACCES)
    with pytest.raises(OutputError, match="s: cannot be created here: Permission denied") as caught:
        write_store(tmp_path / "s", [WATER], Card())
    assert caught.value.exit_code == 73


def test_parents_are_made_and_odd_names_kept(tmp_path: Path) -> None:
    path = tmp_path / "a" / "[b] é*"
    write_store(path, [WATER], Card())
    assert verify(path) == []
    np.testing.assert_array_equal(Store.open(path).read().labels["energy"], [1.0])


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Structures are let go while iterating: few are alive at any time."""
    alive: weakref.WeakSet[Structure] = weakref.WeakSet()
    most = 0

    class Tracked(Structure):
        __hash__ = object.__hash__

    def structures() -> Iterator[Structure]:
        nonlocal most
        for index in range(4000):
            structure = Tracked([1], [[float(index), 0, 0]])
            alive.add(structure)
            if index % 500 == 0:
                most = max(most, len(alive))
            yield structure

    write_store(tmp_path / "s", structures(), Card())
    assert most < 2600
