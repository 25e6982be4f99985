"""The total loss: which terms it has, counts, weights, and the division at the end."""

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.errors import ConfigError, LabelError
from raypot.losses.terms import TermConfig
from raypot.losses.weighting import Progress, TotalLoss
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure

START = Progress(0, 5, 0, 1e-3, 1e-3)


def batch_of(structures: list[Structure]) -> Batch:
    block = Block.from_structures(structures, labels=("energy", "forces"))
    return collate(block, find_edges(block, 3.0), dtype=torch.float64)


def test_terms_of_weight_zero_are_left_out():
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig(weight=0)})
    assert loss.names == loss.wanted == ("energy",)


def test_ramp_from_zero_stays():
    ramp = {"start": 0.0, "end": 4.0}
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig(weight=ramp)})
    assert loss.weights(START).tolist() == [1.0, 0.0]
    assert loss.weights(START._replace(epoch=2)).tolist() == [1.0, 2.0]


def test_unknown_terms_and_norms_are_refused():
    with pytest.raises(ConfigError, match=r"\[loss.dipol\].*did you mean dipole\?"):
        TotalLoss({"dipol": TermConfig()})
    with pytest.raises(ConfigError, match=r"norm 'per_atom_squared' is for properties of whole"):
        TotalLoss({"charges": TermConfig(norm="per_atom_squared")})
    with pytest.raises(ConfigError, match=r"no term has a weight"):
        TotalLoss({})


def test_term_without_a_label_is_refused():
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig()})
    loss.check_labels({"energy": 3, "forces": 1}, "store.zarr")
    with pytest.raises(LabelError, match=r"store.zarr: no structure has a label `forces`"):
        loss.check_labels({"energy": 3}, "store.zarr")


def test_term_without_a_label_in_the_batch_weighs_nothing(ethanol):
    batch = batch_of([Structure(ethanol[0].numbers, ethanol[0].positions)])
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig()})
    assert loss.counts(batch).tolist() == [0.0, 0.0]
    assert loss.scales(START, loss.counts(batch)).tolist() == [0.0, 0.0]


def test_parts_divided_once_equal_the_whole(ethanol):
    first = Structure(ethanol[0].numbers, ethanol[0].positions, labels={"energy": np.array(-9.0)})
    structures = [first, *ethanol[1:6]]
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig(weight=7.0)})
    whole, parts = batch_of(structures), [batch_of(structures[:2]), batch_of(structures[2:])]

    counts = sum(loss.counts(part) for part in parts)
    assert counts.tolist() == loss.counts(whole).tolist() == [6.0, 5 * 27.0]
    zeros = [{"energy": 0 * p.weight, "forces": 0 * p.positions} for p in (*parts, whole)]
    totals = [loss.totals(z, p) for z, p in zip(zeros, (*parts, whole), strict=True)]
    torch.testing.assert_close(totals[0] + totals[1], totals[2], rtol=1e-13, atol=0)
    assert loss.scales(START, counts).tolist() == [1 / 6, 7 / 135]
