"""Structures and tiny models for the contract suites of the architectures."""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from torch import Tensor

from raypot.batch import Batch, collate
from raypot.models import MODELS, AtomisticModel, build_model, outputs_for
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state, predict
from raypot.structures import Block, Structure

CUTOFF = 4.0  # Å
ELEMENTS = (1, 6, 8, 11, 13, 14, 17)
EVERYTHING = ("energy", "forces", "stress", "charges", "dipole")
OPEN = ("energy", "forces", "charges", "dipole")
GEOMETRIES = ("ethanol", "salt", "silicon", "slab")


def structure_of(atoms: Atoms, total_charge: float = 0.0, noise: float = 0.1) -> Structure:
    generator = np.random.default_rng(len(atoms))
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions + noise * generator.normal(size=(len(atoms), 3)),
        cell=np.array(atoms.cell),
        pbc=atoms.pbc,
        total_charge=total_charge,
    )


def geometry(kind: str) -> Structure:
    """Open, cubic smaller than the cutoff, triclinic smaller than the cutoff, slab, ion, atom."""
    if kind == "salt":
        salt = bulk("NaCl", "rocksalt", a=3.9, cubic=True)
        return structure_of(salt)
    if kind == "silicon":
        silicon = bulk("Si", "diamond", a=5.4)
        shear = np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.05, 0.0, 1.0]])
        silicon.set_cell(silicon.cell.array @ shear)
        return structure_of(silicon)
    if kind == "slab":
        return structure_of(fcc111("Al", (1, 1, 2), vacuum=None, periodic=False))
    if kind == "hydroxide":
        return structure_of(molecule("OH"), total_charge=-1.0)
    if kind == "atom":
        return structure_of(Atoms("C", positions=[[0.3, 0.2, 0.1]]), total_charge=1.0)
    return structure_of(molecule("CH3CH2OH"))


def batch_of(
    structures: Sequence[Structure], cutoff: float = CUTOFF, dtype: torch.dtype = torch.float64
) -> Batch:
    block = Block.from_structures(structures)
    return collate(block, find_edges(block, cutoff), dtype)


def made(name: str, outputs: tuple[str, ...] | None = None, seed: int = 0) -> AtomisticModel:
    """A tiny model with every parameter away from its initial value."""
    settings = MODELS[name].Config(n_channels=6, n_layers=2, n_radial=5, cutoff=CUTOFF)
    built = build_model(
        name,
        settings,
        elements=ELEMENTS,
        outputs=outputs or outputs_for(EVERYTHING),
        scale=1.7,
        seed=seed,
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return built


def everything(model: AtomisticModel, structures: Sequence[Structure]) -> dict[str, Tensor]:
    return predict(model, model_state(model), batch_of(structures), EVERYTHING)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
