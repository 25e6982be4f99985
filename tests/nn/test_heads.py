"""Charges and dipoles: what is conserved, and about which origin."""

import numpy as np
import torch

from raypot.batch import Batch, collate
from raypot.neighbors import find_edges
from raypot.nn.heads import ChargeHead, DipoleHead, EnergyHead, Features
from raypot.structures import Block, Structure


def water(total_charge: float, shift: float = 0.0) -> Batch:
    structure = Structure(
        numbers=np.array([8, 1, 1]),
        positions=np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]]) + shift,
        total_charge=total_charge,
    )
    block = Block.from_structures([structure])
    return collate(block, find_edges(block, 3.0), torch.float64)


def test_every_atom_gets_the_same_correction() -> None:
    head = ChargeHead(4).double()
    scalars = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    neutral, cation = head(scalars, water(0.0)), head(scalars, water(1.0))
    torch.testing.assert_close(cation - neutral, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(neutral.sum(), torch.zeros((), dtype=torch.float64))


def test_dipole_of_known_charges() -> None:
    head = DipoleHead(4, has_vectors=False)
    features = Features(torch.zeros(3, 4, dtype=torch.float64), None)
    charges = torch.tensor([-0.8, 0.4, 0.4], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, -0.8 * 0.12 - 0.8 * 0.48]], dtype=torch.float64)
    torch.testing.assert_close(head(features, charges, water(0.0)), expected)


def test_dipole_of_an_ion_is_about_the_geometric_center() -> None:
    head = DipoleHead(4, has_vectors=False)
    features = Features(torch.zeros(3, 4, dtype=torch.float64), None)
    charges = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, 0.12 + 0.84 / 3]], dtype=torch.float64)
    for shift in (0.0, 10.0):
        torch.testing.assert_close(head(features, charges, water(1.0, shift)), expected)


def test_energy_is_counted_from_free_atoms() -> None:
    head = EnergyHead(4).double()
    free = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([1, 0, 0])
    energy = head(free.index_select(0, kinds), free, kinds, water(0.0))
    assert energy.tolist() == [0.0]
