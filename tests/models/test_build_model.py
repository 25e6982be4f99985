"""Building models by name, and what is refused."""

import numpy as np
import pytest
import torch

from raypot.batch import collate
from raypot.config import build
from raypot.errors import ConfigError
from raypot.models import MODELS, build_model, outputs_for
from raypot.models.base import with_free_atoms
from raypot.models.painn import PaiNNConfig
from raypot.models.schnet import SchNetConfig
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure


@pytest.mark.parametrize(
    ("wanted", "outputs"),
    [
        (("forces",), ("energy",)),
        (("stress", "charges"), ("energy", "charges")),
        (("dipole",), ("charges", "dipole")),
        (("dipole", "energy"), ("energy", "charges", "dipole")),
        ((), ()),
    ],
)
def test_outputs_for(wanted: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    assert outputs_for(wanted) == outputs


def test_property_without_a_head() -> None:
    with pytest.raises(ConfigError, match="'quadrupole': no model gives it"):
        outputs_for(("energy", "quadrupole"))


def test_unknown_model() -> None:
    with pytest.raises(ConfigError, match="'pain' is unknown; did you mean painn"):
        build_model("pain", PaiNNConfig(), elements=(1,), outputs=("energy",))


def test_settings_of_another_model() -> None:
    with pytest.raises(ConfigError, match="settings are a SchNetConfig, expected PaiNNConfig"):
        build_model("painn", SchNetConfig(), elements=(1,), outputs=("energy",))


@pytest.mark.parametrize("elements", [(), (6, 1), (1, 1), (0, 1), (119,)])
def test_bad_elements(elements: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected ascending atomic numbers from 1 to 118"):
        build_model("painn", PaiNNConfig(), elements=elements, outputs=("energy",))


@pytest.mark.parametrize("outputs", [(), ("forces",)])
def test_bad_outputs(outputs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="expected some of energy, charges, dipole"):
        build_model("painn", PaiNNConfig(), elements=(1,), outputs=outputs)


def test_dipole_needs_charges() -> None:
    with pytest.raises(ConfigError, match="dipole is made from charges; add charges"):
        build_model("painn", PaiNNConfig(), elements=(1,), outputs=("energy", "dipole"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("key", "value"),
    [("n_layers", 10**9), ("n_channels", 0), ("cutoff", -1.0), ("n_radial", 1), ("cutoff", "far")],
)
def test_settings_out_of_range(name: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"run.toml: {key}: "):
        build(MODELS[name].Config, {key: value}, "run.toml")


def test_dtype_does_not_change_the_parameters() -> None:
    models = [
        build_model("schnet", SchNetConfig(), elements=(1,), outputs=("energy",), dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    for single, double in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(single.double(), double)


def test_free_atoms_are_appended_as_neutral_structures() -> None:
    ion = Structure(numbers=np.array([8]), positions=np.ones((1, 3)), total_charge=-2.0, spin=3.0)
    block = Block.from_structures([ion])
    batch = with_free_atoms(collate(block, find_edges(block, 3.0)), torch.tensor([1, 8]))
    assert batch.numbers.tolist() == [8, 1, 8]
    assert batch.structure.tolist() == [0, 1, 2]
    assert batch.total_charge.tolist() == [-2.0, 0.0, 0.0]
    assert batch.spin.tolist() == [3.0, 1.0, 1.0]
    assert batch.n_atoms.tolist() == [1.0, 1.0, 1.0]
    assert batch.cell.shape == (3, 3, 3)
    assert batch.pbc.shape == (3, 3)
