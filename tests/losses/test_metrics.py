"""Errors as metrics, and the score of a model."""

import math

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.errors import LabelError
from raypot.losses.metrics import METRICS, ErrorSums, score
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure


def batch_of(structures: list[Structure]) -> Batch:
    block = Block.from_structures(structures)
    return collate(block, find_edges(block, 3.0), dtype=torch.float64)


def hydrogen(energy: float, n_atoms: int = 2) -> Structure:
    labels = {"energy": np.array(energy), "forces": np.zeros((n_atoms, 3))}
    return Structure(np.ones(n_atoms), np.arange(3.0 * n_atoms).reshape(-1, 3), labels=labels)


def test_errors_by_hand():
    batch = batch_of([hydrogen(1.0), hydrogen(2.0, 4), hydrogen(math.nan)])
    predicted = {
        "energy": torch.tensor([1.2, 2.8, 5.0], dtype=torch.float64),
        "forces": torch.full((8, 3), 0.5, dtype=torch.float64),
    }
    sums = ErrorSums(("energy", "forces"))
    sums.add(predicted, batch)
    assert sums.result() == pytest.approx(
        {
            "energy/rmse": math.sqrt((0.04 + 0.64) / 2),
            "energy/mae": 0.5,
            "energy_per_atom/rmse": math.sqrt((0.01 + 0.04) / 2),
            "energy_per_atom/mae": 0.15,
            "forces/rmse": 0.5,
            "forces/mae": 0.5,
        }
    )


def test_merged_halves_equal_the_whole(ethanol):
    parts = [ethanol[:5], ethanol[5:12]]
    names = ("energy", "forces", "charges", "dipole")
    whole = ErrorSums(names)
    halves = [ErrorSums(names), ErrorSums(names)]
    for half, structures in zip(halves, parts, strict=True):
        batch = batch_of(structures)
        predicted = {name: label + 0.1 for name, label in batch.labels.items()}
        half.add(predicted, batch)
        whole.add(predicted, batch)
    halves[0].merge(halves[1])
    assert halves[0].result() == pytest.approx(whole.result(), rel=1e-14)
    assert whole.result()["dipole/mae"] == pytest.approx(0.1)
    assert whole.names == ("energy", "energy_per_atom", "forces", "charges", "dipole")


def test_metric_without_labels_is_left_out():
    structures = [Structure(np.ones(1), np.zeros((1, 3)), labels={"energy": np.array(math.nan)})]
    sums = ErrorSums(("energy",))
    sums.add({"energy": torch.zeros(1)}, batch_of(structures))
    assert sums.result() == {}


def test_sums_are_double_whatever_the_batch_is():
    block = Block.from_structures([hydrogen(1e-4)])
    batch = collate(block, find_edges(block, 3.0), dtype=torch.float32)
    sums = ErrorSums(("energy",))
    for _ in range(3):
        sums.add({"energy": torch.zeros(1)}, batch)
    assert sums.sums.dtype == torch.float64
    assert sums.result()["energy/mae"] == pytest.approx(1e-4, rel=1e-7)


def test_score_is_the_geometric_mean_of_what_there_is():
    metrics = {"energy_per_atom/rmse": 0.02, "forces/rmse": 0.09, "charges/rmse": 5.0}
    spread = {"energy_per_atom": 0.1, "forces": 0.2, "charges": 1.0}
    assert score(metrics, spread) == pytest.approx(math.sqrt(0.2 * 0.45))
    assert score({"forces/rmse": 0.09}, spread) == pytest.approx(0.45)
    assert score({"charges/rmse": 5.0}, spread) == pytest.approx(5.0)
    assert math.isnan(score({"forces/rmse": math.nan}, spread))
    assert set(METRICS) >= set(spread)


def test_score_of_nothing_is_refused():
    with pytest.raises(LabelError, match="no metric of none has a spread"):
        score({}, {"forces": 1.0})
    with pytest.raises(LabelError, match=r"training labels of forces have spread 0\.0"):
        score({"forces/rmse": 0.1}, {"forces": 0.0})
