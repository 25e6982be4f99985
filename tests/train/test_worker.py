"""Several processes train the model that one process trains."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from raypot.config import build
from raypot.data.cards import Card
from raypot.data.store import write_store
from raypot.errors import LabelError
from raypot.structures import Structure
from raypot.train import assembly
from raypot.train.checkpoint import load_checkpoint
from raypot.train.model_file import read_model
from raypot.train.ranks import Ranks
from raypot.train.recorder import read_rows
from raypot.train.run import RunConfig, train, train_rank

T = TypeVar("T")
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def store(tmp_path: Path, ethanol: list[Structure]) -> Path:
    path = tmp_path / "ethanol.zarr"
    write_store(path, ethanol, Card(name="ethanol"))
    return path


def settings(store: Path, **training: Any) -> RunConfig:
    tree = {
        "data": {"store": str(store), "split": {"val": 5, "cal": 1, "test": 1}},
        "model": {"name": "schnet", "schnet": {"n_channels": 8, "n_layers": 1, "n_radial": 6}},
        "training": {"n_epochs": 3, "batch_size": 4, **training},
        "runtime": {"dtype": "float64", "device": "cpu"},
    }
    return build(RunConfig, tree, "test")


class Meeting:
    """Where the threads of a test exchange values."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=60)
        self.values: list[Any] = [None] * world


class ThreadRanks(Ranks):
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, len(meeting.values))
        self.meeting = meeting

    def exchange(self, value: T) -> list[T]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.values)
        self.meeting.barrier.wait()
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.exchange(tensor.clone())).sum(0)

    def share(self, value: T) -> T:
        return self.exchange(value)[0]


def train_threads(config: RunConfig, folder: Path, world: int, **options: Any) -> list[Any]:
    """Train with threads as ranks; they build models in turns, as torch's generator is one."""
    meeting, turn, build_model = Meeting(world), threading.Lock(), assembly.build_model

    def build_in_turn(*args: Any, **named: Any) -> Any:
        with turn:
            return build_model(*args, **named)

    def work(rank: int) -> Any:
        torch.set_num_threads(1)
        return train_rank(config, folder, ThreadRanks(rank, meeting), **options)

    with patch.object(assembly, "build_model", build_in_turn), ThreadPoolExecutor(world) as pool:
        return [future.result() for future in [pool.submit(work, r) for r in range(world)]]


def assert_same_training(one: Path, other: Path) -> None:
    ours, theirs = load_checkpoint(one / "checkpoints"), load_checkpoint(other / "checkpoints")
    assert ours is not None
    assert theirs is not None
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], tensor, **CLOSE)
    best, best_too = (read_model(p / "model.safetensors").members[0] for p in (one, other))
    for name, tensor in best.state.items():
        torch.testing.assert_close(best_too.state[name], tensor, **CLOSE)
    rows = zip(read_rows(one / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True)
    for row, row_too in rows:
        assert row.keys() == row_too.keys()
        same = ("step", "learning_rate", "train/loss", "val/loss", "val/score", "gradient_norm")
        assert [row[key] for key in same] == pytest.approx([row_too[key] for key in same], rel=1e-9)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_train_the_model_of_one_process(tmp_path: Path, store: Path, world: int) -> None:
    """17 rows in batches of 4 leave a last batch of one row, of which most ranks have nothing."""
    config = settings(store)
    one = train(config, tmp_path / "one")
    results = train_threads(config, tmp_path / "many", world)
    assert [result.val for result in results] == world * [results[0].val]
    assert results[0].val == pytest.approx(one.val, rel=1e-9)
    assert_same_training(tmp_path / "one", tmp_path / "many")


def test_another_number_of_ranks_goes_on(tmp_path: Path, store: Path) -> None:
    """Stopped in the middle of an epoch with two ranks, the run ends as one process ends it."""
    config, asked = settings(store), iter(range(1000))
    first = train_threads(config, tmp_path / "run", 2, should_stop=lambda: next(asked) >= 14)
    assert {result.stopped for result in first} == {"interrupted"}
    assert first[0].epochs == 1
    assert train(config, tmp_path / "run").stopped == "finished"
    train(config, tmp_path / "straight")
    assert_same_training(tmp_path / "straight", tmp_path / "run")


def test_micro_batches_do_not_change_the_training(tmp_path: Path, store: Path) -> None:
    config = settings(store)
    whole = config.data.model_copy(
        update={"loader": config.data.loader.model_copy(update={"micro_batch_atoms": 0})}
    )
    single = config.data.model_copy(
        update={"loader": config.data.loader.model_copy(update={"micro_batch_atoms": 9})}
    )
    train(config.model_copy(update={"data": whole}), tmp_path / "whole")
    train(config.model_copy(update={"data": single}), tmp_path / "single")
    assert_same_training(tmp_path / "whole", tmp_path / "single")


def test_an_error_of_the_first_rank_reaches_all(tmp_path: Path, ethanol: list[Structure]) -> None:
    store = tmp_path / "bare.zarr"
    bare = [
        Structure(s.numbers, s.positions, labels={"dipole": s.labels["dipole"]}) for s in ethanol
    ]
    write_store(store, bare, Card(name="bare"))
    with pytest.raises(LabelError, match=r"training rows: no structure has a label `energy`"):
        train_threads(settings(store), tmp_path / "run", 2)


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_train_the_model_of_one_process(tmp_path: Path, store: Path) -> None:
    import ray

    from raypot.train.worker import train_workers

    config, epochs = settings(store), []
    one = train(config, tmp_path / "one")

    def note(row: dict[str, float]) -> bool:
        epochs.append(row["epoch"])
        return False

    two = train_workers(config, tmp_path / "two", 2, on_epoch=note)
    assert not ray.is_initialized()
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert (two.stopped, two.epochs, epochs) == ("finished", 3, [1, 2, 3])
    assert two.val == pytest.approx(one.val, rel=1e-9)
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert not [p for p in (tmp_path / "two").iterdir() if p.name in (".ray", ".stop")]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_prune_and_report_errors(tmp_path: Path, store: Path) -> None:
    from raypot.train.worker import local_cluster, train_workers

    config = settings(store, n_epochs=400, patience=400)
    with local_cluster(2):
        first = train_workers(config, tmp_path / "run", 2, on_epoch=lambda row: row["epoch"] >= 2)
        assert first.stopped == "pruned"
        assert 2 <= first.epochs < 400
        with pytest.raises(LabelError, match="no structure has a label `stress`"):
            train_workers(
                build(RunConfig, {**config.tree(), "loss": {"stress": {"weight": 1}}}, ""),
                tmp_path / "other",
                2,
            )


def test_the_function_of_the_workers_runs_without_a_cluster(tmp_path: Path, store: Path) -> None:
    from raypot.train.worker import train_workers

    config = settings(store)
    train(config, tmp_path / "one")
    train_workers(config, tmp_path / "local", 0)
    assert_same_training(tmp_path / "one", tmp_path / "local")
