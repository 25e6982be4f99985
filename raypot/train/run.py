"""One training from its settings, in a folder.

`train` opens the store, draws the split, fits the targets, checks that every term of the loss has
labels, builds everything, and hands it to the loop. The same call in the same folder goes on
where the run stopped.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raypot.data.store import Store
from raypot.errors import ConfigError
from raypot.nn.derivatives import n_parameters
from raypot.train.assembly import assemble, is_compiled
from raypot.train.checkpoint import load_checkpoint
from raypot.train.folder import RunFolder
from raypot.train.loop import Loop, Stopped
from raypot.train.parts import Hooks, Row
from raypot.train.ranks import Ranks
from raypot.train.recorder import read_rows
from raypot.train.settings import (
    DataConfig,
    RunConfig,
    RuntimeConfig,
    TrainingConfig,
    read_run,
)
from raypot.train.signals import StopWish, stop_on_signals
from raypot.train.start import Start, fresh_start, resumed_start
from raypot.train.step import tune_allocator
from raypot.train.writer import Writer

__all__ = [
    "DataConfig",
    "RunConfig",
    "RuntimeConfig",
    "TrainResult",
    "TrainingConfig",
    "describe",
    "read_run",
    "train",
    "train_rank",
]


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Args:
        folder: of the run.
        model: file of the best averaged model.
        epochs: epochs that are over.
        stopped: what ended it.
        signal: name of the signal that interrupted it, else empty.
        val: errors of the best model on the validation rows, by `<metric>/rmse`, `score`, ...
        best_epoch: the epoch of the best model, from 1.
        structures_per_second: median over epochs.
        wall_s: seconds of this call.
    """

    folder: Path
    model: Path
    epochs: int
    stopped: Stopped
    signal: str
    val: dict[str, float]
    best_epoch: int
    structures_per_second: float
    wall_s: float


def train(
    config: RunConfig,
    folder: Path,
    *,
    on_epoch: Callable[[Row], bool] | None = None,
    should_stop: Callable[[], bool] | None = None,
    new: bool = False,
) -> TrainResult:
    """Train one model in this process.

    Args:
        config: the settings.
        folder: of the run; it is created, or the run in it goes on.
        on_epoch: gets the row of an epoch when its checkpoint is on the disk; True ends the run.
        should_stop: asked at every step; True saves and ends the run.
        new: start over where the folder holds a run; that one moves to `earlier/`.

    Raises:
        ConfigError: settings that cannot be, or that differ from those of the run in the folder.
        LabelError: a term of the loss has nothing to learn from.
        OutputError: the folder cannot be written to.
        Busy: another process trains in the folder.
        StorageError: the disk is full or failed; the last checkpoint is intact.
        DivergedError: the loss did not come back.
    """
    return train_rank(config, folder, Ranks(), on_epoch=on_epoch, should_stop=should_stop, new=new)


def train_rank(
    config: RunConfig,
    folder: Path,
    ranks: Ranks,
    *,
    on_epoch: Callable[[Row], bool] | None = None,
    should_stop: Callable[[], bool] | None = None,
    new: bool = False,
) -> TrainResult:
    """Train as one of several ranks; see `train`. The first rank writes all files."""
    began = time.monotonic()
    place = RunFolder(Path(folder))
    with ExitStack() as stack:
        ranks.first(lambda: stack.enter_context(place.claim()))
        stop = stack.enter_context(stop_on_signals(should_stop))
        _set_threads(config.runtime, stack)
        store = _open_store(config)
        start = ranks.first(lambda: _start(config, place, store, new))
        writer = Writer(config, place, store, start, on_epoch)
        stack.callback(writer.close)
        parts = assemble(config, store, start, ranks)
        loop = Loop(parts, _hooks(config, writer, stop))
        content = start.checkpoint or ranks.first(loop.content)
        if start.checkpoint is not None or ranks.world > 1:
            loop.load(content)
        ranks.first(lambda: _begin(writer, loop))
        stopped = loop.run()
    return _result(place, loop, stopped, stop, time.monotonic() - began)


def describe(config: RunConfig) -> dict[str, Any]:
    """Do everything up to the first step, without a folder, and say what would be trained.

    Raises:
        RaypotError: whatever would keep the run from starting.
    """
    store = _open_store(config)
    start = fresh_start(config, store)
    parts = assemble(config, store, start, Ranks())
    return {
        "store": store.path,
        "rows": {role: len(start.split.rows(role)) for role in ("train", "val", "cal", "test")},
        "elements": list(start.elements),
        "model": config.model.name,
        "parameters": n_parameters(parts.model),
        "terms": {name: config.tree()["loss"][name]["weight"] for name in parts.loss.names},
        "steps_per_epoch": parts.train.n_steps,
        "epochs": config.training.n_epochs,
        "device": str(parts.learner.device),
        "compiled": is_compiled(config, parts.train.n_structures, parts.learner.device),
    }


def _start(config: RunConfig, place: RunFolder, store: Store, new: bool) -> Start:
    """Go on where the folder says, or settle everything anew."""
    checkpoint = None if new else load_checkpoint(place.checkpoints)
    if checkpoint is not None:
        return resumed_start(config, store, place, checkpoint)
    start = fresh_start(config, store)
    place.set_aside()
    return start


def _begin(writer: Writer, loop: Loop) -> None:
    """Write what is settled, and the checkpoint to which a failed first epoch goes back."""
    writer.begin()
    if writer.start.checkpoint is None:
        writer.save(loop.content(), False)


def _hooks(config: RunConfig, writer: Writer, stop: StopWish) -> Hooks:
    return Hooks(
        should_stop=stop,
        save=writer.save,
        reload=writer.reload,
        improved=writer.improved,
        record=writer.record,
        on_epoch=writer.on_epoch,
        save_after_s=60 * config.runtime.checkpoint_minutes,
    )


def _open_store(config: RunConfig) -> Store:
    if not config.data.store:
        raise ConfigError("data.store: no store is named; set [data] store or use --data")
    return Store.open(config.data.store)


def _set_threads(runtime: RuntimeConfig, stack: ExitStack) -> None:
    """Set the threads of this process until the run is over, and the allocator for good."""
    tune_allocator()
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(runtime.n_threads)


def _result(
    place: RunFolder, loop: Loop, stopped: Stopped, stop: StopWish, wall_s: float
) -> TrainResult:
    rates = [row["structures_per_second"] for row in read_rows(place.metrics)]
    return TrainResult(
        folder=place.path,
        model=place.model,
        epochs=loop.position.epoch,
        stopped=stopped,
        signal=stop.name,
        val=loop.position.best,
        best_epoch=loop.position.best_epoch,
        structures_per_second=median(rates) if rates else 0.0,
        wall_s=wall_s,
    )
