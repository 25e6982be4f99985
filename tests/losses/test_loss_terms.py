"""Terms against sums done by hand and values of other programs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.config import Config, build
from raypot.errors import ConfigError, LabelError, ShapeMismatch
from raypot.losses.terms import TERMS, LossConfig, TermConfig
from raypot.losses.weighting import Progress, TotalLoss
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure

START = Progress(0, 1, 0, 1e-3, 1e-3)


def ozone_and_dimer(**labels_of_first) -> Batch:
    """Three and two oxygen atoms in boxes; labels are zero, so predictions are errors."""
    structures = []
    for n_atoms in (3, 2):
        labels = {
            "energy": np.array(0.0),
            "forces": np.zeros((n_atoms, 3)),
            "stress": np.zeros((3, 3)),
            "charges": np.zeros(n_atoms),
            "dipole": np.zeros(3),
        }
        structures.append(
            Structure(
                np.full(n_atoms, 8),
                np.arange(3.0 * n_atoms).reshape(-1, 3),
                cell=20 * np.eye(3),
                pbc=np.ones(3, dtype=bool),
                labels=labels,
            )
        )
    first = structures[0]
    structures[0] = replace(first, labels={**first.labels, **labels_of_first})
    block = Block.from_structures(structures)
    return collate(block, find_edges(block, 3.0), dtype=torch.float64)


def errors_of_the_example() -> dict[str, torch.Tensor]:
    """Energy errors 0.3 and -0.2 eV, two force errors, 0.02 eV/Å³ in every stress entry."""
    forces = torch.zeros(5, 3, dtype=torch.float64)
    forces[0, 0], forces[3, 1] = 0.3, 0.5
    return {
        "energy": torch.tensor([0.3, -0.2], dtype=torch.float64),
        "forces": forces,
        "stress": torch.full((2, 3, 3), 0.02, dtype=torch.float64),
    }


def loss_value(terms: dict[str, TermConfig], predicted, batch) -> float:
    loss = TotalLoss(terms)
    scales = loss.scales(START, loss.counts(batch))
    return float((scales * loss.totals(predicted, batch)).sum())


def huber(weight: float) -> TermConfig:
    return TermConfig(weight=weight, error="huber", delta=0.01)


# Source: mace-torch 0.3.16, its loss classes called with this example.
@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({"energy": TermConfig(), "forces": TermConfig(weight=100)}, 2.2766667),
        ({"forces": TermConfig(weight=100)}, 2.2666667),
        (
            {
                "energy": TermConfig(),
                "forces": TermConfig(weight=100),
                "stress": TermConfig(weight=1),
            },
            2.2770667,
        ),
        (
            {
                "energy": TermConfig(error="huber", delta=0.01),
                "forces": huber(100),
                "stress": huber(1),
            },
            0.0537667,
        ),
    ],
    ids=["weighted", "forces_only", "stress", "huber"],
)
def test_mace_values(terms, expected):
    value = loss_value(terms, errors_of_the_example(), ozone_and_dimer())
    assert value == pytest.approx(expected, abs=5e-8)


def term_total(name: str, predicted, batch, **settings) -> tuple[float, float]:
    total, count = TERMS[name](predicted, batch, TermConfig(**settings))
    return float(total), float(count)


def test_norms_of_the_energy():
    batch = ozone_and_dimer()
    predicted = errors_of_the_example()["energy"]
    assert term_total("energy", predicted, batch) == pytest.approx((0.01 + 0.01, 2))
    assert term_total("energy", predicted, batch, norm="per_atom") == pytest.approx(
        (0.09 / 3 + 0.04 / 2, 2)
    )
    whole = pytest.approx((0.09 + 0.04, 2))
    assert term_total("energy", predicted, batch, norm="per_component") == whole
    assert term_total("energy", predicted, batch, norm="per_structure") == whole


def test_mae_per_atom_divides_once():
    batch = ozone_and_dimer()
    predicted = errors_of_the_example()["energy"]
    expected = pytest.approx((0.1 + 0.1, 2))
    assert term_total("energy", predicted, batch, error="mae") == expected
    assert term_total("energy", predicted, batch, error="mae", norm="per_atom") == expected


def test_forces_per_structure_give_each_structure_the_same_weight():
    predicted = torch.ones(5, 3, dtype=torch.float64)
    predicted[3:] = 2.0
    total = term_total("forces", predicted, ozone_and_dimer(), norm="per_structure")
    assert total == pytest.approx((1.0 + 4.0, 2))
    assert term_total("forces", predicted, ozone_and_dimer()) == pytest.approx((9 + 24, 15))


# Source: modelforge, tests/test_training.py, per-atom charge loss of one system of four atoms.
@pytest.mark.parametrize(
    ("predicted", "expected"),
    [([1.1, 0.9, -1.1, -0.9], 0.01), ([2.1, 0.9, -1.1, -1.9], 0.51)],
)
def test_modelforge_charges(predicted, expected):
    labels = {"charges": np.array([1.0, 1.0, -1.0, -1.0])}
    block = Block.from_structures(
        [Structure(np.full(4, 1), np.arange(12.0).reshape(4, 3), labels=labels)]
    )
    batch = collate(block, find_edges(block, 1.0), dtype=torch.float64)
    total, count = term_total(
        "charges", torch.tensor(predicted, dtype=torch.float64), batch, norm="per_structure"
    )
    assert total / count == pytest.approx(expected)


def test_dipole_per_component_sums_three():
    predicted = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert term_total("dipole", predicted, ozone_and_dimer()) == pytest.approx((9.0, 6))
    assert term_total(
        "dipole", predicted, ozone_and_dimer(), norm="per_atom_squared"
    ) == pytest.approx((1.0, 6))


def test_huber_is_a_square_below_delta_and_linear_above():
    batch = ozone_and_dimer()
    predicted = torch.tensor([0.5, 3.0], dtype=torch.float64)
    total, _ = term_total(
        "energy", predicted, batch, error="huber", delta=1.0, norm="per_component"
    )
    assert total == pytest.approx(0.5 * 0.25 + (3.0 - 0.5))


def test_weight_of_a_structure_scales_the_sum_and_not_the_count():
    batch = ozone_and_dimer()
    weighted = batch._replace(weight=torch.tensor([0.5, 1.0], dtype=torch.float64))
    forces = torch.ones(5, 3, dtype=torch.float64)
    assert term_total("forces", forces, weighted) == pytest.approx((9 * 0.5 + 6, 15))
    assert term_total("forces", forces, weighted, norm="per_structure") == pytest.approx((1.5, 2))


def test_stress_counts_only_where_there_is_a_volume():
    batch = ozone_and_dimer()
    slab = batch._replace(pbc=torch.tensor([[True, True, False], [True, True, True]]))
    predicted = torch.full((2, 3, 3), 2.0, dtype=torch.float64)
    predicted[0] = torch.nan
    assert term_total("stress", predicted, slab) == pytest.approx((36.0, 9))


def test_partly_labelled_structure_is_averaged_over_what_it_has():
    forces = np.array([[1.0, 1.0, 1.0], [np.nan] * 3, [np.nan] * 3])
    batch = ozone_and_dimer(forces=forces)
    predicted = torch.full((5, 3), 3.0, dtype=torch.float64)
    total = term_total("forces", predicted, batch, norm="per_structure")
    assert total == pytest.approx((4.0 + 9.0, 2))


def test_shape_and_absent_label_are_named():
    batch = ozone_and_dimer()
    with pytest.raises(ShapeMismatch, match=r"forces: predicted \(5,\) but labelled \(5, 3\)"):
        term_total("forces", torch.zeros(5), batch)
    bare = batch._replace(labels={})
    with pytest.raises(LabelError, match=r"loss\.energy: the batch carries no such label"):
        term_total("energy", torch.zeros(2), bare)


class Holder(Config):
    loss: LossConfig


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"force": {}}, r"loss: loss term 'force' is unknown; did you mean forces\?"),
        ({"forces": {"wieght": 1}}, r"\[loss.forces\] wieght: unknown key; did you mean weight\?"),
        ({"forces": {"norm": "per_atom"}}, r"forces: norm 'per_atom' is for .* whole structures"),
        ({"forces": {"delta": 0.1}}, r"delta belongs to error huber, not to 'mse'"),
        ({"forces": {"error": "rmse"}}, r"\[loss.forces\] error: input should be 'mse', 'mae' or"),
        ({"forces": {"weight": 0}}, r"no term has a weight"),
        ({"forces": {"weight": {"strat": 1}}}, r"\[loss.forces.weight\] strat: unknown key; did"),
        ({}, r"no term has a weight"),
    ],
)
def test_bad_settings_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        build(Holder, {"loss": tree}, "run.toml")


def test_settings_survive_writing():
    tree = {"energy": {"weight": {"start": 1.0, "end": 9.0}}, "forces": {"error": "huber"}}
    loss = build(Holder, {"loss": tree}, "run.toml")
    assert build(Holder, loss.model_dump(mode="json"), "run.toml") == loss
    assert math.isclose(TotalLoss(loss.loss).weights(START)[1], 1.0)
