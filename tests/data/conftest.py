"""Fixtures of the loader: a store of molecules and a crystal, and a way to load it."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from loader_cases import CUTOFF

from raypot.data.cards import Card
from raypot.data.loader import Loader, LoaderConfig
from raypot.data.store import write_store
from raypot.data.targets import TargetsConfig, fit_targets
from raypot.structures import Structure


def make_structures(n_structures=53):
    generator = np.random.default_rng(11)
    kinds = [molecule("H2O"), molecule("CH3OH"), bulk("Al"), molecule("CH3CH2OH")]
    for index in range(n_structures):
        atoms = kinds[index % len(kinds)]
        n_atoms = len(atoms)
        labels = {
            "energy": -1.48e6 * n_atoms + 0.1 * generator.normal(),
            "forces": generator.normal(size=(n_atoms, 3)),
        }
        if index % 2:
            labels["charges"] = generator.normal(size=n_atoms)
        positions = atoms.positions + 0.05 * generator.normal(size=(n_atoms, 3))
        yield Structure(
            atoms.numbers, positions, cell=atoms.cell.array, pbc=atoms.pbc, labels=labels
        )


@pytest.fixture(scope="module")
def mixed_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "mixed"
    return write_store(path, make_structures(), Card())


@pytest.fixture(scope="module")
def mixed_targets(mixed_store):
    return fit_targets(mixed_store.read(), TargetsConfig())


@pytest.fixture
def make_loader(mixed_store, mixed_targets):
    """Build a loader of all rows, backwards, with a few settings changed."""

    def build(rows=None, **changes):
        settings = {
            name: changes.pop(name) for name in list(changes) if name in LoaderConfig.model_fields
        }
        arguments = {
            "labels": ("energy", "forces"),
            "targets": mixed_targets,
            "cutoff": CUTOFF,
            "batch_size": 8,
            "dtype": torch.float64,
            "config": LoaderConfig(**settings),
        }
        rows = np.arange(mixed_store.n_structures)[::-1] if rows is None else rows
        return Loader(mixed_store, rows, **{**arguments, **changes})

    return build
