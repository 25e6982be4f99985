"""`ray job submit -- raypot tune` on a cluster of one node, as docs/cluster.md says it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from raypot.data.cards import Card
from raypot.data.store import write_store
from raypot.tune.study import Study

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port",
)  # fmt: skip
SPACE = """
[tune]
n_trials = 2
grace_epochs = 1
[model]
name = "schnet"
[model.schnet]
n_channels = 8
n_layers = 1
n_radial = 8
cutoff = 3.0
[data.split]
train = 12
val = 6
cal = 3
test = 3
[training]
n_epochs = 2
batch_size = 6
[training.optimizer.adamw]
learning_rate = { log_uniform = [1e-3, 1e-2] }
[runtime]
device = "cpu"
compile = "never"
n_threads = 1
"""


class Head(NamedTuple):
    """A running head node."""

    address: str
    environment: dict[str, str]

    def job(self, *arguments: object, **other: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", *map(str, arguments)]
        return subprocess.run(
            command, env={**self.environment, **other}, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip

    def submit(self, folder: Path, *entrypoint: object) -> subprocess.CompletedProcess[str]:
        where = ("--address", self.address, "--working-dir", folder)
        return self.job("submit", *where, "--", *entrypoint)


def free_ports(n_ports: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n_ports)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def processes_naming(text: str) -> list[int]:
    """Return processes with `text` in their command line: the temporary folder is ours alone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if text.encode() in line and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def stop(process: subprocess.Popen[bytes], scratch: str) -> None:
    process.terminate()
    process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while (left := processes_naming(scratch)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # The paths of sockets may have 107 characters: pytest's own folder is too deep.
    scratch = tempfile.mkdtemp(prefix="rp-", dir="/tmp")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        "--object-store-memory=100000000", f"--temp-dir={scratch}",
        *[f"--{name}={port}" for name, port in ports.items()],
    ]  # fmt: skip
    log = Path(scratch) / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        running = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
        deadline = time.monotonic() + 120
        while (answer := running.job("list", "--address", running.address)).returncode != 0:
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, answer.stderr
            time.sleep(0.5)
        yield running
    finally:
        stop(process, scratch)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.timeout(280)
def test_search_as_a_job(head, ethanol, tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    (job / "space.toml").write_text(SPACE, encoding="utf-8")
    write_store(tmp_path / "store.zarr", ethanol, Card())
    study = tmp_path / "study"
    done = head.submit(
        job, BIN / "raypot", "tune", "space.toml", "--data", tmp_path / "store.zarr",
        "--out", study, "--trials", 2, "--concurrency", 2, "--address", "auto", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tune: 2 of 2 trials done" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"study"'))
    summary = json.loads(line)
    assert summary["n_trials"] == 2
    assert summary["n_failed"] == 0
    assert {row.state for row in Study.open(study).trials()} <= {"complete", "pruned"}
    assert (study / "best.toml").exists()


@pytest.mark.timeout(120)
def test_failed_job_tells_why(head, tmp_path):
    done = head.submit(tmp_path, BIN / "raypot", "tune", "absent.toml", "--address", "auto")
    assert done.returncode == 1
    assert "absent.toml: no such file" in done.stdout
    assert "exit code 66" in done.stdout + done.stderr


def test_cluster_is_closed_to_strangers(head):
    refused = head.job("list", "--address", head.address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0
    assert "token" in refused.stderr.lower()
