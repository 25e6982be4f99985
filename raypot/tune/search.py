"""A search on Ray Tune: trials in processes of their own, bad ones stopped early.

Optuna proposes and the study on disk remembers (`raypot.tune.driver`); Ray starts processes,
carries reports and prunes. What Ray writes about the experiment is thrown away at the end.

A trial process is used again for the next trial, so that imports are paid for once.
"""

import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune

from raypot.config import build
from raypot.data.store import Store
from raypot.durable import failed
from raypot.errors import Busy, ConfigError
from raypot.train.run import train
from raypot.train.signals import StopWish, stop_on_signals
from raypot.tune.branches import at
from raypot.tune.driver import Driver
from raypot.tune.events import SearchEvent
from raypot.tune.owner import Ownership
from raypot.tune.runner import Train
from raypot.tune.samplers import SAMPLERS
from raypot.tune.search_cluster import cluster, last_line
from raypot.tune.search_trials import (
    TRIAL_SCHEDULERS,
    Proposals,
    Watch,
    replay,
    resources_per_trial,
    trial_process,
)
from raypot.tune.space import SearchSpace, TuneConfig
from raypot.tune.study import Study

__all__ = ["SAMPLERS", "TRIAL_SCHEDULERS", "SearchEvent", "search"]

MAX_RESTARTS = 2  # of a trial whose process died
TERMINATED = 143


def search(
    space: SearchSpace,
    folder: Path,
    *,
    n_trials: int | None = None,
    time_limit: float | None = None,
    concurrency: int | None = None,
    address: str = "local",
    on_event: Callable[[SearchEvent], None] | None = None,
) -> Study:
    """Search a space, or continue the search that stands in the folder.

    Ctrl-C and SIGTERM let every running trial end its epoch, put it back into the queue and write
    the tables; then this raises `KeyboardInterrupt` or `SystemExit(143)`. A second Ctrl-C does
    not wait. After any end, also that by SIGKILL, the same call goes on.

    Args:
        space: what to search; its `[tune]` section says how.
        folder: the study; made if it is missing. On a cluster all nodes must see it.
        n_trials: different configurations in total; wins over the space.
        time_limit: minutes; running trials are then stopped and kept as they are.
        concurrency: trials at the same time; default: one per core of the cluster.
        address: `local` starts Ray on this machine, `auto` joins the cluster that runs here.
        on_event: called at every change and at least every second while trials run.

    Returns:
        The study with its tables written.

    Raises:
        SearchError: too many trials failed; the tables are written.
        Busy: another driver searches in this folder.
        ConfigError: the folder belongs to another space, or no store is named.
        RaypotError: whatever every trial meets, for example a damaged store.
    """
    given = {"n_trials": n_trials, "time_limit": time_limit, "concurrency": concurrency}
    wins = {key: value for key, value in given.items() if value is not None}
    tuned = build(TuneConfig, {**space.tune.model_dump(), **wins}, "settings of the search")
    _check_store(space)
    return _search(replace(space, tune=tuned), Path(folder), address, on_event, train)


def _check_store(space: SearchSpace) -> None:
    """Open the store once here, so that a damaged one is found before any process starts."""
    store = at(space.written, "data.store")
    if not store:
        raise ConfigError(f"{space.where}: [data] store: is not set; add it or use --data STORE")
    if isinstance(store, str):
        Store.open(store)


def _search(
    space: SearchSpace,
    folder: Path,
    address: str,
    on_event: Callable[[SearchEvent], None] | None,
    training: Train,
) -> Study:
    """Search with any training function."""
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failed(folder, error, "nothing was searched") from error
    with Ownership(folder) as owner:
        study = Study.start(folder, space)
        study.journal.reconcile()
        with cluster(address, space.tune.concurrency) as n_parallel, stop_on_signals() as wish:
            driver = Driver(study, space, n_parallel, owner, on_event=on_event)
            try:
                _run(driver, training, wish)
            finally:
                driver.conclude()
    if wish.number:
        raise KeyboardInterrupt if wish.number == signal.SIGINT else SystemExit(TERMINATED)
    driver.judge()
    return study


def _run(driver: Driver, training: Train, wish: StopWish) -> None:
    """Let Ray Tune run the trials of `driver` until it has no more."""
    if driver.is_over:
        return
    settings, max_epochs = driver.space.tune, driver.space.max_epochs()
    scheduler = TRIAL_SCHEDULERS[settings.scheduler](settings, max_epochs)
    replay(driver.study, scheduler)
    proposals = Proposals(driver)
    scratch = tempfile.mkdtemp(prefix="raypot-tune-")
    try:
        tune.run(
            trial_process(training),
            name="study",
            search_alg=proposals,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            resources_per_trial=resources_per_trial(driver),
            max_failures=MAX_RESTARTS,
            raise_on_failed_trial=False,
            stop=lambda _, __: bool(driver.stop_reason),
            callbacks=[Watch(driver, wish, proposals.attempts)],
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            storage_path=scratch,
            verbose=0,
            _remote=False,
        )
    except ray.exceptions.RayError as error:
        raise Busy(
            f"{driver.study.folder}: Ray ended while trials were running "
            f"({last_line(error)}); repeat the command to go on"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
