"""Training with several processes: the same loop on every rank, started by Ray Train.

The first rank writes the run folder, which all nodes of a cluster must share. The driver, which is
the process that the user started, follows `metrics.jsonl` and passes wishes to stop on through a
file, because signals reach the driver only.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from raypot.config import build
from raypot.durable import write_json
from raypot.errors import Busy, RaypotError
from raypot.train.assembly import pick_device
from raypot.train.folder import RunFolder
from raypot.train.ranks import ProcessRanks, Ranks
from raypot.train.recorder import read_rows
from raypot.train.run import RunConfig, TrainResult, train_rank
from raypot.train.signals import StopWish, stop_on_signals

OBJECT_STORE = 200_000_000  # bytes; the loaders of the workers read the store themselves
LONGEST_FOLDER = 40
# Ray replaces 127.0.0.1 by the address that others see; this one is as local and is kept.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
POLL_S = 0.2
OUTCOME, STOP, RAY_FILES = ".outcome.json", ".stop", ".ray"
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

Row = dict[str, float]


def train_workers(
    config: RunConfig,
    folder: Path,
    n_workers: int,
    *,
    on_epoch: Callable[[Row], bool] | None = None,
    should_stop: Callable[[], bool] | None = None,
    new: bool = False,
) -> TrainResult:
    """Train one model in several processes that share every batch; see `train`.

    The parameters are those of one process with the same settings, up to rounding.

    Args:
        config: the settings.
        folder: of the run.
        n_workers: processes; 0 runs the same function here, without a cluster.
        on_epoch: gets the row of an epoch; True ends the run at the next step.
        should_stop: True saves and ends the run.
        new: start over where the folder holds a run.

    Raises:
        RaypotError: whatever `train` raises.
    """
    place = RunFolder(Path(folder).resolve())
    place.create()
    for name in (OUTCOME, STOP):
        (place.path / name).unlink(missing_ok=True)
    job = {
        "config": _with_full_path(config).tree(),
        "folder": str(place.path),
        "new": new,
    }
    os.environ.update({key: os.environ.get(key, value) for key, value in _SETTINGS.items()})
    use_gpu = pick_device(config.runtime).type == "cuda"
    if n_workers == 0:
        _fit(job, 0, use_gpu)
        return _read_outcome(place)
    with local_cluster(n_workers), stop_on_signals(should_stop) as stop:
        rows = _NewRows(place, new)
        is_pruned = _follow(lambda: _fit(job, n_workers, use_gpu), rows, on_epoch, stop)
        (place.path / STOP).unlink(missing_ok=True)
    result = _read_outcome(place)
    if result.stopped != "interrupted":
        return result
    return replace(result, stopped="pruned" if is_pruned else "interrupted", signal=stop.name)


@contextmanager
def local_cluster(n_cpus: int) -> Iterator[None]:
    """Have a Ray cluster: the one that is there, or one of our own on the loopback address.

    Our own has no dashboard, a small object store, and a token without which nobody connects. It
    ends with the block.

    Args:
        n_cpus: cores that our own offers.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False)
        yield
        return
    # Short, because the paths of sockets are limited to 107 bytes.
    short = "/tmp" if len(tempfile.gettempdir()) > LONGEST_FOLDER else None
    scratch = tempfile.TemporaryDirectory("", "raypot-", short, ignore_cleanup_errors=True)
    with scratch as folder, _token():
        ray.init(
            address="local",
            num_cpus=n_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _token() -> Iterator[None]:
    """Ask for a token that only this process and its children know, while the block runs."""
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update(ours)
    _read_environment_again()
    try:
        yield
    finally:
        os.environ.update({key: value or "" for key, value in before.items()})
        os.environ["RAY_AUTH_MODE"] = before["RAY_AUTH_MODE"] or "disabled"
        _read_environment_again()
        for key in [key for key, value in before.items() if value is None]:
            del os.environ[key]


def _read_environment_again() -> None:
    """Make Ray, which reads the environment when it is imported, forget what it read."""
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _fit(job: dict[str, Any], n_workers: int, use_gpu: bool) -> None:
    """Run the job on the workers and wait for them."""
    # Late, because they take seconds to import and the workers do not need them.
    from ray.train import RunConfig as RayRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        _work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=n_workers, use_gpu=use_gpu),
        run_config=RayRunConfig(storage_path=str(Path(job["folder"]) / RAY_FILES), name="run"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error


def _work(job: dict[str, Any]) -> None:
    """Train as one rank; this runs on the workers."""
    import torch

    ranks = ProcessRanks() if torch.distributed.is_initialized() else Ranks()
    config = build(RunConfig, job["config"], "worker")
    place = RunFolder(Path(job["folder"]))
    should_stop = _StopFile(place.path / STOP) if ranks.is_first else None
    result = train_rank(config, place.path, ranks, should_stop=should_stop, new=job["new"])
    if ranks.is_first:
        plain = {**asdict(result), "folder": str(result.folder), "model": str(result.model)}
        write_json(place.path / OUTCOME, plain)


class _StopFile:
    """Look for the file that says stop, not more often than needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked = 0.0

    def __call__(self) -> bool:
        if time.monotonic() - self._looked < POLL_S:
            return False
        self._looked = time.monotonic()
        return self.path.exists()


def _follow(
    fit: Callable[[], None],
    rows: "_NewRows",
    on_epoch: Callable[[Row], bool] | None,
    stop: StopWish,
) -> bool:
    """Run `fit` beside this thread, pass its rows to `on_epoch`, and pass on wishes to stop.

    Returns:
        Whether `on_epoch` asked to stop.
    """
    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            fit()
        except RaypotError as error:
            problems.append(error)

    thread = threading.Thread(target=guarded, name="ray-train", daemon=True)
    is_pruned = False
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        for row in rows():
            is_pruned = bool(on_epoch and on_epoch(row)) or is_pruned
        if is_pruned or stop():
            (rows.metrics.parent / STOP).touch()
    if problems:
        raise problems[0]
    return is_pruned


class _NewRows:
    """The rows that a run adds to `metrics.jsonl`, each once.

    Args:
        place: folder of the run.
        new: whether the run starts over.
    """

    def __init__(self, place: RunFolder, new: bool) -> None:
        self.metrics = place.metrics
        self._before = self._file()
        rows = [] if new else read_rows(self.metrics)
        self._seen = rows[-1]["epoch"] if rows else 0.0

    def __call__(self) -> list[Row]:
        """Return the rows that came since the last call."""
        if self._file() == self._before:
            return []  # the run writes a file of its own, with the rows that it keeps
        rows = [row for row in read_rows(self.metrics) if row["epoch"] > self._seen]
        self._seen = rows[-1]["epoch"] if rows else self._seen
        return rows

    def _file(self) -> int:
        return self.metrics.stat().st_ino if self.metrics.exists() else 0


def _with_full_path(config: RunConfig) -> RunConfig:
    """Return the settings with a store that is found from any working directory."""
    store = config.data.store
    if not store or "://" in store:
        return config
    data = config.data.model_copy(update={"store": str(Path(store).resolve())})
    return config.model_copy(update={"data": data})


def _cause(error: Any) -> BaseException:
    """Return the failure of ours behind a failure of Ray's, if there is one."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner: Any = failure
        while inner is not None and not isinstance(inner, RaypotError):
            inner = getattr(inner, "_base_exc", None) or inner.__cause__
        if inner is not None:
            return inner
    return Busy(
        f"a worker was lost ({str(error).strip().splitlines()[-1]}); repeat the command, which "
        "goes on from the last checkpoint"
    )


def _read_outcome(place: RunFolder) -> TrainResult:
    """Read what the first rank said at the end, and remove what only the job needed."""
    path = place.path / OUTCOME
    if not path.exists():
        raise Busy(f"{place.path}: the workers ended without a result; repeat the command")
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    (place.path / STOP).unlink(missing_ok=True)
    shutil.rmtree(place.path / RAY_FILES, ignore_errors=True)
    return TrainResult(**{**tree, "folder": Path(tree["folder"]), "model": Path(tree["model"])})
