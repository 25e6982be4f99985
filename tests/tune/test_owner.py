import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raypot.errors import Busy
from raypot.tune.owner import LOCK_FILE, Owner, Ownership


def test_two_drivers(tmp_path: Path) -> None:
    message = r"process \d+ on .* searches here since .*; wait"
    with Ownership(tmp_path), pytest.raises(Busy, match=message):
        Ownership(tmp_path).__enter__()
    with Ownership(tmp_path):
        pass


def test_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from raypot.tune.owner import Ownership; "
        "Ownership(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == socket.gethostname()
    with Ownership(tmp_path):
        pass


@pytest.mark.parametrize(
    "change", [{"started": 1}, {"boot": "before"}], ids=["reused-pid", "rebooted"]
)
def test_an_owner_is_more_than_its_pid(tmp_path: Path, change: dict) -> None:
    owner = replace(Owner.this(), **change)
    (tmp_path / LOCK_FILE).write_text(json.dumps(asdict(owner)))
    old = time.time() - 1000
    os.utime(tmp_path / LOCK_FILE, (old, old))
    with Ownership(tmp_path):
        pass


def test_an_owner_elsewhere_lives_by_its_heartbeat(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_FILE
    lock.write_text(json.dumps(asdict(replace(Owner.this(), host="elsewhere"))))
    with pytest.raises(Busy, match="on elsewhere searches here"):
        Ownership(tmp_path).__enter__()
    silent = time.time() - 1000
    os.utime(lock, (silent, silent))
    with Ownership(tmp_path):
        pass


def test_half_a_lock_file_is_nobody(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"pid": 12, "ho')
    with Ownership(tmp_path):
        pass
