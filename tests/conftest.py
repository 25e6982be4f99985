"""Fixtures for every test: small labelled structures, the real data, one thread, float64."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from raypot.structures import Floats, Integers, Structure

SAMPLE = Path(__file__).parent.parent / "datasets" / "ethanol_gfn2"
WELL_DEPTH, STEEPNESS, CHARGE_SCALE = 0.4, 1.2, 0.1  # eV, 1/Å, e


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: results are then the same on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; its absence is a failure in CI and a skip elsewhere."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAYPOT_DATA", default))
    if not folder.is_dir():
        reason = f"no real data at {folder}; set RAYPOT_DATA to its folder"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the shipped ethanol sample."""
    return SAMPLE


def morse_labels(numbers: Integers, positions: Floats) -> dict[str, Floats]:
    """Label an open molecule with a Morse pair potential and distance-dependent charges.

    E = sum_{i<j} D (1 - exp(-a (r - r0_ij)))^2 - 10 eV Z_i per atom, with r0 the sum of half
    distances 0.35 Å + 0.05 Å Z^(1/2). It is smooth and cheap, and its forces are exact.
    """
    energy, forces = -10.0 * float(numbers.sum()), np.zeros_like(positions)
    charges = np.zeros(len(numbers))
    for i in range(len(numbers)):
        for j in range(i):
            vector = positions[i] - positions[j]
            r = np.linalg.norm(vector)
            r0 = 0.7 + 0.25 * (numbers[i] ** 0.5 + numbers[j] ** 0.5)
            decay = np.exp(-STEEPNESS * (r - r0))
            energy += WELL_DEPTH * (1 - decay) ** 2
            pull = 2 * WELL_DEPTH * STEEPNESS * (1 - decay) * decay * vector / r
            forces[i] -= pull
            forces[j] += pull
            moved = CHARGE_SCALE * (numbers[i] - numbers[j]) / 8 * np.exp(-r)
            charges[i] -= moved
            charges[j] += moved
    dipole = charges @ positions
    return {"energy": np.array(energy), "forces": forces, "charges": charges, "dipole": dipole}


@pytest.fixture
def ethanol() -> list[Structure]:
    """Twenty-four distorted ethanol molecules with energy, forces, charges and dipole."""
    atoms = molecule("CH3CH2OH")
    generator = np.random.default_rng(7)
    structures = []
    for index in range(24):
        positions = atoms.positions + 0.08 * generator.standard_normal(atoms.positions.shape)
        labels = morse_labels(atoms.numbers, positions)
        structures.append(
            Structure(atoms.numbers, positions, labels=labels, source=("ethanol.xyz", index))
        )
    return structures
