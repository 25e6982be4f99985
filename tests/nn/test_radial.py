"""Radial functions, envelopes and the description of edges."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from raypot.config import build
from raypot.errors import ConfigError
from raypot.models.base import ModelConfig
from raypot.nn.radial import (
    CUTOFFS,
    RADIAL_BASES,
    BesselBasis,
    GaussianBasis,
    cosine_envelope,
    polynomial_envelope,
)

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "radial_functions.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", ["gaussian", "bessel"])
def test_basis_has_the_known_values(name: str) -> None:
    basis = {"gaussian": GaussianBasis(10, 5.2, start=0.8), "bessel": BesselBasis(8, 5.0)}[name]
    golden = GOLDEN[name]
    relative = golden["tolerance"].get("relative", 0.0)
    absolute = golden["tolerance"].get("absolute", 0.0)
    for case in golden["cases"]:
        values = basis.double()(torch.tensor([case["distance"]], dtype=torch.float64))[0]
        expected = torch.tensor(case["value"], dtype=torch.float64)
        torch.testing.assert_close(values[: len(expected)], expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("power", [5, 6])
def test_polynomial_has_the_known_values(power: int) -> None:
    golden = GOLDEN["polynomial"]
    distance = torch.tensor(golden["distance"], dtype=torch.float64)
    expected = torch.tensor(golden["value"][str(power)], dtype=torch.float64)
    values = polynomial_envelope(distance, 5.0, power)
    torch.testing.assert_close(values, expected, rtol=0.0, atol=golden["tolerance"]["absolute"])


def test_cosine_has_the_known_values() -> None:
    golden = GOLDEN["cosine"]
    values = cosine_envelope(torch.tensor(golden["distance"], dtype=torch.float64), 6.0)
    expected = torch.tensor(golden["value"], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0.0, atol=golden["tolerance"]["absolute"])


@pytest.mark.parametrize("name", CUTOFFS)
def test_envelope_falls_from_one_to_zero_and_ends_smoothly(name: str) -> None:
    envelope = CUTOFFS[name]
    distance = torch.linspace(0.0, 4.0, 401, dtype=torch.float64)
    values = envelope(distance, 4.0)
    assert values[0] == 1.0
    assert values[-1] == 0.0
    assert (values.diff() <= 0.0).all()
    slope = torch.func.grad(lambda d: envelope(d, 4.0))
    for at in (4.0 - 1e-9, 4.0, 5.0):
        assert abs(slope(torch.tensor(at, dtype=torch.float64))) < 1e-8
    assert envelope(torch.tensor(5.0), 4.0) == 0.0


@pytest.mark.parametrize("name", RADIAL_BASES)
def test_basis_is_finite_with_its_derivatives_near_zero(name: str) -> None:
    basis = RADIAL_BASES[name](4, 5.0)
    distance = torch.tensor([1e-10], requires_grad=True)
    values = basis(distance)
    (slope,) = torch.autograd.grad(values.sum(), distance)
    assert values.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("key", ["radial", "envelope"])
def test_unknown_name_is_refused_with_what_is_known(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .*'gausian' is unknown"):
        build(ModelConfig, {key: "gausian"}, "run.toml")


def test_schema_lists_the_names() -> None:
    assert issubclass(ModelConfig, BaseModel)
    fields = ModelConfig.model_json_schema()["properties"]
    assert fields["radial"]["enum"] == list(RADIAL_BASES)
    assert fields["envelope"]["enum"] == list(CUTOFFS)
    assert all(field["description"] for field in fields.values())
