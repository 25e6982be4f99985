"""What every loss term must do, whatever its norm and error."""

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.losses.terms import TERMS, TermConfig, check_term
from raypot.neighbors import find_edges
from raypot.properties import PROPERTIES
from raypot.structures import Block, Structure

NORMS = ("per_component", "per_atom", "per_atom_squared", "per_structure")
ERRORS = ("mse", "mae", "huber")


def fits(name: str, norm: str) -> bool:
    try:
        check_term(name, TermConfig(norm=norm))
    except ValueError:
        return False
    return True


CASES = [
    pytest.param(name, TermConfig(norm=norm, error=error), id=f"{name}-{norm}-{error}")
    for name in TERMS
    for norm in NORMS
    for error in ERRORS
    if fits(name, norm)
]
every_term = pytest.mark.parametrize(("name", "config"), CASES)


def structures(rng: np.random.Generator) -> list[Structure]:
    """Boxes of helium, neon and argon with random labels; one is without labels at all."""
    made = []
    for index, n_atoms in enumerate((3, 1, 4, 2)):
        labels = {
            name: rng.standard_normal((n_atoms, *row.shape) if row.level == "atom" else row.shape)
            for name, row in PROPERTIES.items()
            if name in TERMS
        }
        if index == 1:
            labels = {name: np.full_like(value, np.nan) for name, value in labels.items()}
        made.append(
            Structure(
                rng.choice([2, 10, 18], n_atoms),
                6 * rng.random((n_atoms, 3)),
                cell=6 * np.eye(3),
                pbc=np.ones(3, dtype=bool),
                labels=labels,
                weight=float(rng.random()),
            )
        )
    return made


def batch_of(structures: list[Structure]) -> Batch:
    block = Block.from_structures(structures)
    return collate(block, find_edges(block, 3.0), dtype=torch.float64)


@pytest.fixture
def batch(rng) -> Batch:
    return batch_of(structures(rng))


def guess(name: str, batch: Batch, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch.labels[name].shape, generator=generator, dtype=torch.float64)


def test_names_are_properties():
    assert set(TERMS) <= set(PROPERTIES)
    assert all(name == term.name for name, term in TERMS.items())


@every_term
def test_perfect_prediction_costs_nothing(name, config, batch):
    total, count = TERMS[name](batch.labels[name].nan_to_num(3.0), batch, config)
    assert total.item() == 0.0
    assert count.item() > 0


@every_term
def test_two_halves_equal_the_whole(name, config, rng):
    made = structures(rng)
    whole = batch_of(made)
    predicted = guess(name, whole)
    n_first = 4 if TERMS[name].is_of_structure is False else 2
    halves = (predicted[:n_first], batch_of(made[:2])), (predicted[n_first:], batch_of(made[2:]))
    parts = [TERMS[name](values, half, config) for values, half in halves]
    total, count = TERMS[name](predicted, whole, config)
    torch.testing.assert_close(parts[0].total + parts[1].total, total, rtol=1e-13, atol=0)
    assert (parts[0].count + parts[1].count).item() == count.item()


@every_term
def test_missing_labels_are_silent(name, config, batch):
    """A label that is NaN changes neither value nor gradient, even where the prediction is NaN."""
    predicted = guess(name, batch)
    missing = batch.labels[name].isnan()
    poisoned = torch.where(missing, torch.nan, predicted).requires_grad_()
    total, count = TERMS[name](poisoned, batch, config)
    expected = TERMS[name](predicted, batch, config)
    assert (total.item(), count.item()) == (expected.total.item(), expected.count.item())
    (gradient,) = torch.autograd.grad(total, poisoned)
    assert (gradient[missing] == 0).all()
    assert gradient.isfinite().all()
    assert (gradient[~missing] != 0).all()


@every_term
def test_gradient_is_right(name, config, batch):
    predicted = guess(name, batch).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: TERMS[name].total(values, batch, config), (predicted,)
    )


@every_term
def test_batch_without_any_label_counts_nothing(name, config, batch):
    labels = {name: torch.full_like(batch.labels[name], torch.nan)}
    total, count = TERMS[name](guess(name, batch), batch._replace(labels=labels), config)
    assert (total.item(), count.item()) == (0.0, 0.0)


@every_term
def test_order_of_structures_does_not_matter(name, config, rng):
    made = structures(rng)
    forward, backward = batch_of(made), batch_of(made[::-1])
    totals = [TERMS[name](torch.zeros_like(b.labels[name]), b, config) for b in (forward, backward)]
    torch.testing.assert_close(totals[0].total, totals[1].total, rtol=1e-13, atol=0)
