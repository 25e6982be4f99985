"""The step: gradients against finite differences, eager against compiled, no compiling twice."""

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.losses.terms import TermConfig
from raypot.losses.weighting import Progress, TotalLoss
from raypot.models import MODELS, build_model, outputs_for
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state
from raypot.structures import Block, Structure
from raypot.train.compiling import cpp_compiler
from raypot.train.step import StepResult, make_step, trainable_names

START = Progress(0, 1, 0, 1e-3, 1e-3)
TERMS = {"energy": 1.0, "forces": 10.0, "stress": 100.0, "charges": 3.0, "dipole": 2.0}


def helium_boxes(n_structures: int, seed: int = 0) -> list[Structure]:
    """Boxes of one to four helium and neon atoms with random labels; every third is open."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n_structures):
        n_atoms = 2 + index % 3
        is_open = index % 3 == 2
        labels = {
            "energy": rng.standard_normal(),
            "forces": rng.standard_normal((n_atoms, 3)),
            "charges": rng.standard_normal(n_atoms),
            "dipole": rng.standard_normal(3),
            "stress": np.full((3, 3), np.nan) if is_open else rng.standard_normal((3, 3)),
        }
        if index == 1:
            del labels["forces"]
        made.append(
            Structure(
                rng.choice([2, 10], n_atoms),
                3.0 * rng.random((n_atoms, 3)),
                cell=np.zeros((3, 3)) if is_open else 4.0 * np.eye(3) + 0.3 * rng.random((3, 3)),
                pbc=np.full(3, not is_open),
                labels=labels,
                weight=float(rng.uniform(0.5, 1.5)),
            )
        )
    return made


def batch_of(structures: list[Structure], dtype: torch.dtype = torch.float64) -> Batch:
    block = Block.from_structures(structures, labels=TERMS)
    return collate(block, find_edges(block, 3.0), dtype=dtype)


def small_model(name: str, wanted: tuple[str, ...], dtype=torch.float64, n_layers: int = 2):
    settings = MODELS[name].Config(n_channels=6, n_layers=n_layers, n_radial=5, cutoff=3.0)
    return build_model(
        name, settings, elements=(2, 10), outputs=outputs_for(wanted), scale=0.7, dtype=dtype
    )


def loss_of(*names: str) -> TotalLoss:
    return TotalLoss({name: TermConfig(weight=TERMS[name]) for name in names})


def scales_of(loss: TotalLoss, batch: Batch) -> torch.Tensor:
    return loss.scales(START, loss.counts(batch))


def assert_same(one: StepResult, other: StepResult, tolerance: float) -> None:
    """Compare by the largest gradient: some gradients are zero but for rounding."""
    torch.testing.assert_close(one.totals, other.totals, rtol=tolerance, atol=tolerance)
    largest = max(float(gradient.abs().max()) for gradient in other.gradients.values())
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        error = float((gradient - other.gradients[name]).abs().max())
        assert error <= tolerance * largest, name


@pytest.mark.parametrize("name", MODELS)
def test_gradients_against_finite_differences(name):
    loss, model = loss_of(*TERMS), small_model(name, tuple(TERMS))
    batch, state = batch_of(helium_boxes(4)), model_state(model)
    scales, step = scales_of(loss, batch), make_step(model, loss)
    gradients = step(state, batch, scales).gradients
    generator = torch.Generator().manual_seed(3)
    for parameter, gradient in list(gradients.items())[::5]:
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            moved = {**state, parameter: state[parameter] + sign * 1e-5 * direction}
            values.append(float((scales * step(moved, batch, scales).totals).sum()))
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-7)


def test_gradients_are_of_parameters_alone():
    model, loss = small_model("schnet", ("energy",)), loss_of("energy")
    batch = batch_of(helium_boxes(3))
    frozen = "embedding.weight"
    model.get_parameter(frozen).requires_grad_(False)
    result = make_step(model, loss)(model_state(model), batch, scales_of(loss, batch))
    assert frozen not in trainable_names(model)
    assert set(result.gradients) == set(trainable_names(model))
    assert "scale" in model_state(model)
    assert not result.totals.requires_grad
    assert not any(gradient.requires_grad for gradient in result.gradients.values())


def test_step_changes_nothing_and_ignores_the_values_of_the_model():
    model, loss = small_model("painn", ("energy", "forces")), loss_of("energy", "forces")
    batch = batch_of(helium_boxes(3))
    state = {name: tensor.clone() for name, tensor in model_state(model).items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    step, scales = make_step(model, loss), scales_of(loss, batch)
    first = step(state, batch, scales)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(step(state, batch, scales), first, 0.0)
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_micro_batches_add_up_to_the_batch():
    structures = helium_boxes(7)
    model, loss = small_model("painn", tuple(TERMS)), loss_of(*TERMS)
    whole, parts = batch_of(structures), [batch_of(structures[:3]), batch_of(structures[3:])]
    counts = sum(loss.counts(part) for part in parts)
    step, state, scales = make_step(model, loss), model_state(model), loss.scales(START, counts)
    first, second = (step(state, part, scales) for part in parts)
    gradients = {name: first.gradients[name] + second.gradients[name] for name in first.gradients}
    added = StepResult(first.totals + second.totals, gradients)
    assert_same(added, step(state, whole, scales), 1e-12)


def test_state_of_tensors_that_require_gradients_is_as_good():
    model, loss = small_model("schnet", ("energy", "forces")), loss_of("energy", "forces")
    batch = batch_of(helium_boxes(2))
    step, scales = make_step(model, loss), scales_of(loss, batch)
    live = dict(model.state_dict(keep_vars=True))
    result = step(live, batch, scales)
    assert_same(result, step(model_state(model), batch, scales), 0.0)
    assert all(tensor.grad is None for tensor in live.values())


# Compiling takes most of a minute, even for one layer.
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not cpp_compiler(), reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("schnet", torch.float64, 1e-11), ("painn", torch.float32, 1e-5)],
    ids=["schnet-float64", "painn-float32"],
)
def test_compiled_equals_eager_and_compiles_once(name, dtype, tolerance, monkeypatch, tmp_path):
    """One graph serves any number of structures, atoms and edges, a single structure included."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    wanted = tuple(TERMS) if name == "schnet" else ("energy", "forces", "charges")
    model, loss = small_model(name, wanted, dtype, n_layers=1), loss_of(*wanted)
    eager, compiled = make_step(model, loss), make_step(model, loss, compile=True)
    state = model_state(model)
    many = helium_boxes(9) + 200 * helium_boxes(6, seed=5)
    # Five structures first: the number of terms, a size that must not be taken for the same.
    # Not the first structure alone: its energy error nearly vanishes, and in float32 both the
    # eager and the compiled gradient are 1e-4 from that in float64.
    for structures in (many[:5], many[3:4], many[1:4], many[5:6], many[:9], many):
        batch = batch_of(structures, dtype)
        scales = scales_of(loss, batch)
        assert_same(compiled(state, batch, scales), eager(state, batch, scales), tolerance)
    assert len(batch.source) > 4096
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("n_atoms", [1, 2])
def test_compiled_step_takes_sizes_that_the_compiler_does_not(n_atoms):
    """Atoms out of reach of each other run eager, without compiling anything."""
    model, loss = small_model("schnet", ("energy", "forces")), loss_of("energy", "forces")
    labels = {"energy": 0.5, "forces": np.zeros((n_atoms, 3))}
    apart = Structure(np.full(n_atoms, 2), 50.0 * np.eye(3)[:n_atoms], labels=labels)
    batch, state = batch_of([apart]), model_state(model)
    scales = scales_of(loss, batch)
    result = make_step(model, loss, compile=True)(state, batch, scales)
    assert_same(result, make_step(model, loss)(state, batch, scales), 0.0)
    assert result.totals[0] == pytest.approx((0.5 / n_atoms) ** 2 * 1.0)
