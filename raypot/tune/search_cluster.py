"""Ray for the time of a search: started on this machine alone, or joined where it runs."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from raypot.errors import Busy, UsageError
from raypot.train.worker import local_cluster

LONGEST_REASON = 300
ADDRESS, SET_BY_RAY = "RAY_ADDRESS", ("PYTHONBREAKPOINT",)
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
        address: `local`, or what `ray.init` joins from within a cluster: `auto`, `HOST:PORT`.
        concurrency: as asked for; None: one trial per core.

    Yields:
        How many trials run at the same time.

    Raises:
        Busy: no cluster runs where one was to be joined.
        UsageError: an address of Ray Client.
    """
    if ray.is_initialized():
        yield concurrency or n_cores()
        return
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address == "local":
        n_parallel = concurrency or len(os.sched_getaffinity(0))
        with _environment(_settings(concurrency), without=ADDRESS), ExitStack() as stack:
            with _children_that_ignore(signal.SIGTERM, signal.SIGUSR1):
                stack.enter_context(local_cluster(n_parallel))
            yield n_parallel
        return
    with _environment(_settings(concurrency)):
        try:
            _join(address)
            yield concurrency or n_cores()
        finally:
            ray.shutdown()


@contextmanager
def _children_that_ignore(*signals: signal.Signals) -> Iterator[None]:
    """Start processes that do not die of signals sent to everything that a job started.

    Schedulers and terminals signal whole groups. Ray has to outlive the driver's last epochs; it
    ends with the driver in any case.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join(address: str) -> None:
    """Connect to a cluster that runs."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: a search runs within its cluster, not over Ray Client; "
            "use `ray job submit -- raypot tune ... --address auto`",
            address=address,
        )
    environment: dict[str, Any] = {"env_vars": SETTINGS}
    try:
        ray.init(
            address=address, runtime_env=environment, log_to_driver=False, logging_level="error"
        )
    except ConnectionError as error:
        raise Busy(
            f"--address {address}: no Ray cluster answers ({last_line(error)}); start one, "
            "or use --address local",
            address=address,
        ) from error


def _settings(concurrency: int | None) -> dict[str, str]:
    """Return the environment of Ray in this process and in those that it starts."""
    at_once = str(concurrency or len(os.sched_getaffinity(0)))  # processes that start together
    return {**SETTINGS, "TUNE_MAX_PENDING_TRIALS_PG": at_once, "PYTHONPATH": _own_paths()}


def _own_paths() -> str:
    """Return where this process finds modules beyond its installation, for those it starts."""
    own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(path for path in (*own, *inherited) if path))


@contextmanager
def _environment(settings: Mapping[str, str], without: str = "") -> Iterator[None]:
    """Set environment variables, and unset one, for as long as the block lasts."""
    names = {*settings, *SET_BY_RAY, without} - {""}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(settings)
    os.environ.pop(without, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def n_cores() -> int:
    """Return how many cores the cluster has."""
    return max(1, int(ray.cluster_resources().get("CPU", 1.0)))


def last_line(error: object) -> str:
    """Return the last line of what Ray says about a failure: that is where it says what."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:LONGEST_REASON] if lines else "the process died"
