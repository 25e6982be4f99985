"""Forces and stress from energies that are known in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raypot.batch import Batch, collate, segment_sum
from raypot.errors import ConfigError
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state, n_parameters, predict
from raypot.nn.radial import edge_vectors
from raypot.structures import Block, Structure

LENGTH, STIFFNESS = 2.0, 3.0  # Å, eV/Å²


class Springs(nn.Module):
    """E = k/2 sum over pairs (d - d0)²; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(STIFFNESS, dtype=torch.float64))
        self.register_buffer("length", torch.tensor(LENGTH, dtype=torch.float64))
        self.needs_grad: list[bool] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        vectors = edge_vectors(batch)
        self.needs_grad.append(vectors.requires_grad)
        energy = 0.25 * self.stiffness * (vectors.norm(dim=-1) - self.length).square()
        structure = batch.structure.index_select(0, batch.target)
        return {
            "energy": segment_sum(energy, structure, batch.cell.shape[0]),
            "charges": batch.positions[:, 0] * 0.0,
        }


def cubic(length: float) -> Batch:
    """One atom in a cubic cell, bound to its six images."""
    atom = Structure(
        numbers=np.array([18]), positions=np.zeros((1, 3)), cell=np.eye(3) * length, pbc=True
    )
    block = Block.from_structures([atom])
    return collate(block, find_edges(block, 1.2 * length), torch.float64)


@pytest.mark.parametrize("length", [2.1, 1.9])
def test_stress_is_positive_under_tension(length: float) -> None:
    springs, batch = Springs(), cubic(length)
    predicted = predict(springs, model_state(springs), batch, ("energy", "forces", "stress"))
    # E = 3 k/2 (a - d0)² for one atom; one spring of tension k (a - d0) crosses each face of a².
    expected = torch.eye(3, dtype=torch.float64) * STIFFNESS * (length - LENGTH) / length**2
    torch.testing.assert_close(predicted["stress"][0], expected)
    assert (expected.diagonal() > 0.0).all() == (length > LENGTH)
    torch.testing.assert_close(predicted["forces"], torch.zeros(1, 3, dtype=torch.float64))


def test_derivatives_are_taken_only_where_wanted() -> None:
    springs, batch = Springs(), cubic(2.1)
    state = model_state(springs)
    assert set(predict(springs, state, batch, ("energy",))) == {"energy"}
    assert springs.needs_grad == [False]
    assert set(predict(springs, state, batch, ("stress",))) == {"stress"}
    assert springs.needs_grad == [False, True]


def test_gradient_by_the_state() -> None:
    springs, batch = Springs(), cubic(2.1)
    state = model_state(springs)

    def trace(stiffness: Tensor) -> Tensor:
        predicted = predict(springs, {**state, "stiffness": stiffness}, batch, ("stress",))
        return predicted["stress"].diagonal(dim1=1, dim2=2).sum()

    gradient = torch.func.grad(trace)(state["stiffness"])
    assert gradient.item() == pytest.approx(3.0 * 0.1 / 2.1**2)


def test_missing_output_is_named() -> None:
    springs, batch = Springs(), cubic(2.1)
    with pytest.raises(ConfigError, match="'dipole' is asked for but the model gives energy"):
        predict(springs, model_state(springs), batch, ("dipole",))


def test_state_is_detached_and_counted() -> None:
    springs = Springs()
    state = model_state(springs)
    assert set(state) == {"stiffness", "length"}
    assert not any(tensor.requires_grad for tensor in state.values())
    assert n_parameters(springs) == 1
