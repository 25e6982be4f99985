"""Optimizers against torch's own loop, skipped steps, clipping, averages and resuming."""

import json
import math

import pytest
import torch
from torch import Tensor

from raypot.config import Choice, build
from raypot.errors import CheckpointError, ConfigError
from raypot.train.optim import OPTIMIZERS, Averager, Optimizer, build_optimizer

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
REFERENCE = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding.weight": (3, 4), "dense.weight": (4, 4), "dense.bias": (4,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def choice(name: str, **settings) -> Choice:
    return Choice(name=name, settings=OPTIMIZERS[name](**settings))


def run(optimizer: Optimizer, start: int, stop: int) -> None:
    for seed in range(start, stop):
        optimizer.apply(parameters(100 + seed))


@every_optimizer
def test_same_as_the_plain_loop_with_clipping(name):
    live = parameters()
    optimizer = build_optimizer(choice(name, weight_decay=0.1), live, clip_grad=2.0)
    optimizer.learning_rate = 0.03
    plain = {key: value.clone().requires_grad_() for key, value in parameters().items()}
    matrices = [plain["dense.weight"]]
    rest = [plain["embedding.weight"], plain["dense.bias"]]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    reference = REFERENCE[name](groups, lr=0.03, foreach=False, **extra)
    for seed in range(5):
        norm = optimizer.apply(parameters(100 + seed))
        for key, gradient in parameters(100 + seed).items():
            plain[key].grad = gradient
        expected = torch.nn.utils.clip_grad_norm_(list(plain.values()), 2.0)
        reference.step()
        assert float(norm) == pytest.approx(float(expected), rel=1e-12)
    for key, value in live.items():
        torch.testing.assert_close(value, plain[key].detach(), rtol=1e-12, atol=1e-13)


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_changes_nothing(name, bad):
    live = parameters()
    optimizer = build_optimizer(choice(name), live, clip_grad=1.0)
    twin_live = parameters()
    twin = build_optimizer(choice(name), twin_live, clip_grad=1.0)
    broken = parameters(7)
    broken["dense.bias"][1] = bad
    optimizer.apply({key: value.clone() for key, value in broken.items()})
    assert all(torch.equal(live[key], value) for key, value in parameters().items())
    for seed in range(3):
        optimizer.apply(parameters(100 + seed))
        twin.apply(parameters(100 + seed))
        norm = optimizer.apply({key: value.clone() for key, value in broken.items()})
        assert not norm.isfinite()
    assert optimizer.n_skipped.item() == 4
    assert all(torch.equal(live[key], twin_live[key]) for key in live)


@every_optimizer
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_layout_of_gradients_does_not_matter(name, clip_grad):
    """Gradients may come transposed or expanded, and are not written to."""
    plain = parameters(5)
    plain["dense.bias"].fill_(plain["dense.bias"][0])
    odd = {key: value.clone() for key, value in plain.items()}
    odd["dense.weight"] = odd["dense.weight"].T.contiguous().T
    odd["dense.bias"] = odd["dense.bias"][:1].expand(4)
    results = []
    for gradients in (plain, odd):
        live = parameters()
        optimizer = build_optimizer(choice(name), live, clip_grad)
        for _ in range(3):
            optimizer.apply(gradients)
        results.append(live)
    for key in results[0]:
        torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-13, atol=0)
        assert torch.equal(plain[key], odd[key])


@every_optimizer
def test_resumed_equals_not_stopped(name):
    live = parameters()
    optimizer = build_optimizer(choice(name), live, clip_grad=3.0)
    run(optimizer, 0, 4)
    optimizer.learning_rate = 5e-4
    saved = {
        key: value.clone() if isinstance(value, Tensor) else json.loads(json.dumps(value))
        for key, value in optimizer.state_dict().items()
    }
    again = {key: value.clone() for key, value in live.items()}
    resumed = build_optimizer(choice(name), again, clip_grad=3.0)
    resumed.load_state_dict(saved)
    run(optimizer, 4, 9)
    run(resumed, 4, 9)
    assert resumed.learning_rate == 5e-4
    assert all(torch.equal(live[key], again[key]) for key in live)


def test_loading_copies_the_state():
    optimizer = build_optimizer(choice("adamw"), parameters())
    run(optimizer, 0, 2)
    other = build_optimizer(choice("adamw"), parameters())
    other.load_state_dict(optimizer.state_dict())
    before = optimizer.state_dict()["exp_avg.dense.bias"].clone()
    run(other, 2, 4)
    assert torch.equal(optimizer.state_dict()["exp_avg.dense.bias"], before)


def test_state_of_another_is_refused():
    optimizer = build_optimizer(choice("adamw"), parameters())
    run(optimizer, 0, 1)
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match="is of 'adamw', expected 'sgd'"):
        build_optimizer(choice("sgd"), parameters()).load_state_dict(state)
    small = {"dense.bias": torch.zeros(4, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"embedding\.weight, which the model has not"):
        build_optimizer(choice("adamw"), small).load_state_dict(state)
    wide = {**parameters(), "dense.bias": torch.zeros(5, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"exp_avg\.dense\.bias has shape \(4,\), expected"):
        build_optimizer(choice("adamw"), wide).load_state_dict(state)


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="no parameters to train"):
        build_optimizer(choice("adamw"), {})
    with pytest.raises(ConfigError, match=r"kinds is torch.int64 with strides \(1,\), expected"):
        build_optimizer(choice("adamw"), {"kinds": torch.arange(3)})
    with pytest.raises(ConfigError, match=r"w is torch.float32 with strides \(1, 4\), expected"):
        build_optimizer(choice("adamw"), {"w": torch.zeros(2, 4).T})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamw", {"learning_rate": 0}, r"learning_rate: input should be greater than 0"),
        ("adam", {"betas": [0.9, 1.0]}, r"betas.*1: input should be less than 1"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, r"nesterov needs momentum above 0"),
        ("sgd", {"amsgrad": True}, r"amsgrad: unknown key"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(OPTIMIZERS[name], settings, "run.toml")


def test_average_of_a_constant_is_the_constant():
    live = parameters()
    averager = Averager(live, decay=0.99)
    for _ in range(5):
        averager.update()
    assert all(torch.equal(averager.state()[key], value) for key, value in live.items())


def test_average_forgets_the_start_quickly():
    live = {"w": torch.zeros(1, dtype=torch.float64)}
    averager = Averager(live, decay=0.3)
    expected, value = 0.0, 0.0
    for n in range(6):
        value += 1.0
        live["w"].fill_(value)
        averager.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert averager.state()["w"].item() == pytest.approx(expected, rel=1e-14)


def test_average_follows_the_optimizer_and_resumes_bit_equal():
    live = parameters()
    optimizer, averager = build_optimizer(choice("adamw"), live), Averager(live, decay=0.9)
    run(optimizer, 0, 3)
    averager.update()
    saved = {k: v.clone() if isinstance(v, Tensor) else v for k, v in averager.state_dict().items()}
    again = Averager(live, decay=0.9)
    again.load_state_dict(saved)
    for which in (averager, again):
        live["dense.bias"].fill_(1.0)
        which.update()
    assert all(torch.equal(averager.state()[k], again.state()[k]) for k in live)
    assert again.n_updates == 2
    again.reset()
    assert torch.equal(again.state()["dense.bias"], live["dense.bias"])


@pytest.mark.parametrize("decay", [None, 0.0])
def test_no_average_gives_the_parameters(decay):
    live = parameters()
    averager = Averager(live, decay)
    live["dense.bias"].fill_(4.0)
    averager.update()
    assert torch.equal(averager.state()["dense.bias"], live["dense.bias"])
