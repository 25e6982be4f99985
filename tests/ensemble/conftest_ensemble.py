"""Small ensembles with random parameters: they predict nonsense, but consistently."""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from raypot.config import build
from raypot.data.cards import Card
from raypot.data.splits import SplitConfig, make_split
from raypot.data.store import write_store
from raypot.data.targets import Targets
from raypot.ensemble.predictor import Predictor
from raypot.models import MODELS, build_model
from raypot.nn.derivatives import model_state
from raypot.structures import Structure
from raypot.train.folder import RunFolder
from raypot.train.model_file import Member, ModelFile, write_model
from raypot.tune.tables import ranked
from raypot.tune.trial import TrialRow

SELF_ENERGIES = {1: -13.5, 6: -1030.0, 8: -2040.0, 14: -7890.0}
SIZES = {"n_channels": 8, "n_layers": 2, "n_radial": 6}
CALIBRATION = {
    "properties": {
        "energy_per_atom": {
            "a": 2.0,
            "b": 1e-6,
            "factor": 1.7,
            "constant": 0.01,
            "n_structures": 300,
            "n_values": 300,
        },
        "forces": {
            "a": 3.0,
            "b": 4e-4,
            "factor": 1.6,
            "constant": 0.1,
            "n_structures": 300,
            "n_values": 8100,
        },
    }
}


def make_member(
    name="painn",
    seed=0,
    weight=1.0,
    cutoff=4.0,
    outputs=("energy", "charges", "dipole"),
    dtype=torch.float64,
    elements=(1, 6, 8, 14),
):
    section = {"name": name, name: {**SIZES, "cutoff": cutoff}}
    settings = build(MODELS[name].Config, section[name], "test")
    model = build_model(
        name, settings, elements=elements, outputs=outputs, seed=seed, dtype=dtype, scale=0.7
    )
    state = {key: value.clone() for key, value in model_state(model).items()}
    generator = torch.Generator().manual_seed(1000 + seed)
    for value in state.values():  # readouts start at zero: shake all parameters
        if value.is_floating_point() and value.ndim:
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    targets = Targets(
        {z: SELF_ENERGIES[z] for z in elements}, 0.7, 4, {"energy_per_atom": 0.1, "forces": 1.0}
    )
    return Member(
        f"{name}.{seed}", section, tuple(elements), tuple(outputs), state, targets, weight
    )


@pytest.fixture(scope="session")
def mixed_file():
    """Three members that differ in architecture, cutoff, heads and weight."""
    members = (
        make_member("painn", 1, 0.5),
        make_member("schnet", 2, 0.3, cutoff=3.0, outputs=("energy",)),
        make_member("painn", 3, 0.2, cutoff=3.5, outputs=("energy", "charges")),
    )
    return ModelFile(members, CALIBRATION)


@pytest.fixture
def silicon():
    """A strained, rattled periodic box of eight atoms."""
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell @ np.array([[1, 0.02, 0], [0, 1.01, 0], [0.03, 0, 0.98]]), True)
    atoms.rattle(0.08, seed=3)
    return Structure(atoms.numbers, atoms.positions, atoms.cell[:], atoms.pbc)


def perturbed(member, name, seed, size):
    """A copy of a member whose parameters are a little off, each in its own direction."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: value.clone() for key, value in member.state.items()}
    for value in state.values():
        if value.is_floating_point() and value.ndim:
            value += size * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return replace(member, name=name, state=state)


def labelled_by(member, structures):
    """Label structures with the predictions of a member: the truth of a made-up world."""
    rows = Predictor(ModelFile((member,))).predict(structures, ("energy", "forces", "charges"))
    return [replace(s, labels=row) for s, row in zip(structures, rows, strict=True)]


def many_ethanols(count, seed=11, size=0.06):
    """Distorted ethanol molecules."""
    atoms = molecule("CH3CH2OH")
    generator = np.random.default_rng(seed)
    return [
        Structure(
            atoms.numbers, atoms.positions + size * generator.standard_normal((9, 3)),
            source=("ethanol.xyz", index),
        )
        for index in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A store of 400 labelled structures, and a study folder with the runs of seven trials."""
    return World(tmp_path_factory.mktemp("world"))


class World:
    """Trials are copies of the truth with errors: 0-3 good, 4 bad, 5 pruned, 6 failed."""

    split = SplitConfig(train=0.3, val=0.2, cal=0.25, test=0.25)
    sizes: ClassVar = {0: 0.003, 1: 0.003, 2: 0.0035, 3: 0.004, 4: 0.03, 5: 0.012}
    states: ClassVar = {4: "complete", 5: "pruned", 6: "failed"}

    def __init__(self, root):
        self.root, self.study = root, root / "study"
        truth = make_member("painn", 1, outputs=("energy", "charges"))
        structures = labelled_by(truth, many_ethanols(400))
        self.structures = structures
        self.store = write_store(root / "ethanol.zarr", structures, Card(name="ethanol"))
        drawn = make_split(self.store, self.split)
        self.rows = []
        for number in range(7):
            folder = RunFolder(self.study / "trials" / str(number))
            folder.path.mkdir(parents=True)
            drawn.save(folder.split)
            if number in self.sizes:
                member = perturbed(truth, "painn", 49, self.sizes[0])  # an error that all share
                member = perturbed(member, "painn", 50 + number, self.sizes[number])
                write_model(folder.model, ModelFile((member,), {}, {"data": self.facts(drawn)}))
            self.rows.append(self.row(number, folder.path))

    def facts(self, drawn):
        return {
            "store": self.store.path,
            "fingerprint": self.store.fingerprint,
            "level": "reference",
            "split": self.split.model_dump(mode="json"),
            "split_fingerprint": drawn.fingerprint,
        }

    def row(self, number, folder):
        data = {"store": self.store.path, "level": "reference"}
        return TrialRow(
            number=number, state=self.states.get(number, "complete"),
            value=self.sizes.get(number), params={}, config={"seed": 100 + number, "data": data},
            metrics={}, epochs=1, reason="", folder=folder, wall_s=1.0,
        )  # fmt: skip

    def open_study(self, folder):
        return SimpleNamespace(leaderboard=lambda: ranked(self.rows))
