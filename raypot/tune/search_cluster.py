"""Ray for the time of a search: started on this machine alone, or joined where it runs."""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from raypot.errors import Busy

OBJECT_STORE_BYTES = 200_000_000
LONGEST_SOCKET_FOLDER = 40
LONGEST_REASON = 300
# Ray replaces 127.0.0.1 by the address that others see; this one is as local and is kept.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
SET_BY_RAY = ("PYTHONBREAKPOINT",)
# Read by Ray in this process and in those that it starts.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


@contextmanager
def cluster(address: str, concurrency: int | None) -> Iterator[int]:
    """Start or join Ray, and leave it as it was found.

    Args:
        address: `local`, or what `ray.init` joins.
        concurrency: as asked for; None: one trial per core.

    Yields:
        How many trials run at the same time.

    Raises:
        Busy: no cluster runs where one was to be joined.
    """
    if ray.is_initialized():
        yield concurrency or n_cores()
        return
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scratch = tempfile.TemporaryDirectory(
        prefix="raypot-", dir=_short_folder(), ignore_cleanup_errors=True
    )
    with _environment(_settings(concurrency)), scratch, _secret(address):
        try:
            yield _start(address, concurrency, scratch.name)
        finally:
            ray.shutdown()


def _settings(concurrency: int | None) -> dict[str, str]:
    """Return the environment of Ray in this process and in those that it starts."""
    at_once = str(concurrency or len(os.sched_getaffinity(0)))  # processes that start together
    return {**SETTINGS, "TUNE_MAX_PENDING_TRIALS_PG": at_once, "PYTHONPATH": _own_paths()}


def _start(address: str, concurrency: int | None, scratch: str) -> int:
    """Start Ray on this machine or join it; return how many trials run at the same time."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        n_parallel = concurrency or len(os.sched_getaffinity(0))
        ray.init(
            address="local",
            num_cpus=n_parallel,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            _temp_dir=scratch,
            **quiet,
        )
        return n_parallel
    try:
        ray.init(address=address, runtime_env={"env_vars": SETTINGS}, **quiet)
    except ConnectionError as error:
        raise Busy(
            f"--address {address}: no Ray cluster answers ({last_line(error)}); start one, "
            "or use --address local",
            address=address,
        ) from error
    return concurrency or n_cores()


def _own_paths() -> str:
    """Return where this process finds modules beyond its installation, for those it starts."""
    own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join(
        dict.fromkeys([*own, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )


@contextmanager
def _secret(address: str) -> Iterator[None]:
    """Let nobody talk to a cluster that was started here without a secret.

    Ray listens on every interface of the machine, and whoever talks to it can run code.
    """
    if address != "local":
        yield
        return
    try:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with _environment(token):
            _read_environment_again()
            yield
    finally:
        with _environment({"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}):
            _read_environment_again()


def _read_environment_again() -> None:
    """Make Ray, which reads the environment when it is imported, forget what it read."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the block lasts."""
    before = {key: os.environ.get(key) for key in (*settings, *SET_BY_RAY)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _short_folder() -> str | None:
    """Return a folder for sockets, whose paths are limited to 107 characters."""
    return None if len(tempfile.gettempdir()) < LONGEST_SOCKET_FOLDER else "/tmp"


def n_cores() -> int:
    """Return how many cores the cluster has."""
    return max(1, int(ray.cluster_resources().get("CPU", 1.0)))


def last_line(error: object) -> str:
    """Return the last line of what Ray says about a failure: that is where it says what."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:LONGEST_REASON] if lines else "the process died"
