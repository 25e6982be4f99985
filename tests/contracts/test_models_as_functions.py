"""What every architecture must keep as a function: gradients, files, tracing, stacks."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from model_cases import (
    ELEMENTS,
    EVERYTHING,
    GEOMETRIES,
    batch_of,
    close,
    everything,
    geometry,
    made,
    structure_of,
)
from safetensors.torch import load, save
from torch import Tensor

from raypot.batch import Batch
from raypot.models import MODELS, AtomisticModel, build_model
from raypot.nn.derivatives import model_state, n_parameters, predict
from raypot.structures import Structure

pytestmark = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def model(name: str) -> AtomisticModel:
    return made(name)


def test_state_survives_a_file(name: str, model: AtomisticModel) -> None:
    data = save({key: value.contiguous() for key, value in model_state(model).items()})
    other = made(name, seed=1)
    before = everything(model, [geometry("ethanol")])["energy"]
    assert not torch.equal(everything(other, [geometry("ethanol")])["energy"], before)
    other.load_state_dict(load(data))
    close(everything(other, [geometry("ethanol")])["energy"], before, 0.0)


def trainable(model: AtomisticModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def loss_of(
    model: AtomisticModel, parameters: dict[str, Tensor], batch: Batch, wanted: tuple[str, ...]
) -> Tensor:
    """A loss on every wanted property, without a special point at zero."""
    predicted = predict(model, {**model_state(model), **parameters}, batch, wanted)
    total = batch.positions.new_zeros(())
    for value in predicted.values():
        total = total + (value.nan_to_num() - 0.3).square().mean()
    return total


def test_a_loss_on_derivatives_reaches_every_parameter(name: str) -> None:
    model = made(name)
    batch = batch_of([geometry("ethanol"), geometry("salt"), geometry("hydroxide")])
    parameters = trainable(model)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return loss_of(model, values, batch, EVERYTHING)

    gradients = torch.func.grad(loss)(parameters)
    generator = torch.Generator().manual_seed(1)
    for key, gradient in gradients.items():
        way = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        ends = [loss({**parameters, key: parameters[key] + s * way}) for s in (step, -step)]
        expected = (ends[0] - ends[1]) / (2.0 * step)
        assert gradient.abs().max() > 0.0, key
        torch.testing.assert_close((gradient * way).sum(), expected, rtol=1e-5, atol=1e-7)


def test_energy_alone_reaches_every_parameter_of_an_energy_model(name: str) -> None:
    model = made(name, ("energy",))
    batch = batch_of([geometry("ethanol"), geometry("salt")])
    gradients = torch.func.grad(lambda values: loss_of(model, values, batch, ("energy",)))(
        trainable(model)
    )
    untouched = [key for key, gradient in gradients.items() if not gradient.abs().max() > 0.0]
    assert untouched == []


def test_single_precision_agrees(model: AtomisticModel) -> None:
    structures = [geometry(kind) for kind in GEOMETRIES]
    double = everything(model, structures)
    batch = batch_of(structures, dtype=torch.float32)
    single = predict(model.float(), model_state(model), batch, EVERYTHING)
    for name, value in single.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), double[name], rtol=1e-4, atol=2e-5, equal_nan=True
        )


def test_one_graph_serves_every_batch(name: str) -> None:
    model = made(name)
    parameters = trainable(model)
    wanted = ("energy", "forces", "stress", "charges", "dipole")

    def gradients(values: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return torch.func.grad(lambda inner: loss_of(model, inner, batch, wanted))(values)

    torch.compiler.reset()
    traced = torch.compile(gradients, backend="eager", fullgraph=True, dynamic=True)
    for kinds in (("ethanol", "salt"), ("silicon", "slab", "ethanol"), ("slab", "hydroxide")):
        batch = batch_of([geometry(kind) for kind in kinds])
        for key, value in traced(parameters, batch).items():
            close(value, gradients(parameters, batch)[key])
    torch.compiler.reset()


def test_stacked_members_equal_single_ones(name: str) -> None:
    members = [made(name, seed=seed) for seed in range(3)]
    batch = batch_of([geometry("ethanol"), geometry("salt")])
    states = [model_state(member) for member in members]
    stack = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    wanted = ("energy", "forces")
    together = torch.vmap(lambda state: predict(members[0], state, batch, wanted))(stack)
    for k, member in enumerate(members):
        for key, value in predict(member, states[k], batch, wanted).items():
            close(together[key][k], value)


def test_strides_do_not_matter(model: AtomisticModel) -> None:
    batch = batch_of([geometry("salt")])
    strided = batch._replace(
        positions=batch.positions.t().contiguous().t(),
        cell=batch.cell.mT.contiguous().mT,
        source=torch.stack([batch.source, batch.source], dim=1)[:, 0],
    )
    state = model_state(model)
    first = predict(model, state, batch, EVERYTHING)
    for key, value in predict(model, state, strided, EVERYTHING).items():
        close(value, first[key])


def test_seed_decides_the_parameters(name: str) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, same, other = made(name), made(name), made(name, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert n_parameters(first) == n_parameters(other) > 0
    for key, value in trainable(first).items():
        assert torch.equal(value, trainable(same)[key])
    assert any(not torch.equal(v, trainable(other)[key]) for key, v in trainable(first).items())


def test_unknown_element_stops(model: AtomisticModel) -> None:
    gold = Structure(numbers=np.array([79, 1]), positions=np.array([[0.0, 0, 0], [1.5, 0, 0]]))
    with pytest.raises(IndexError, match="out of range"):
        model(batch_of([gold]))


@pytest.mark.parametrize("elements", [(6,), tuple(range(1, 119))])
def test_number_of_elements(name: str, elements: tuple[int, ...]) -> None:
    settings = MODELS[name].Config(n_channels=4, n_layers=1, n_radial=4)
    model = build_model(name, settings, elements=elements, outputs=("energy",))
    carbon = structure_of(bulk("C"))
    predicted = predict(
        model, model_state(model), batch_of([carbon], 5.0, torch.float32), ("energy", "forces")
    )
    assert predicted["energy"].isfinite().all()
    assert predicted["forces"].shape == (2, 3)


def test_first_predictions_have_the_size_of_the_scale(name: str) -> None:
    model = build_model(
        name, MODELS[name].Config(), elements=ELEMENTS, outputs=("energy",), dtype=torch.float64
    )
    structure = geometry("ethanol")
    batch = batch_of([structure], model.cutoff)
    predicted = predict(model, model_state(model), batch, ("energy", "forces"))
    assert predicted["energy"].abs().item() / len(structure) < 3.0
    assert 0.01 < predicted["forces"].square().mean().sqrt() < 5.0
