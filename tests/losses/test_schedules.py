"""Weights over time: end points, steps, and what a run file may say."""

from itertools import pairwise

import pytest

from raypot.config import Config, build
from raypot.errors import ConfigError
from raypot.losses.schedules import (
    WEIGHT_SCHEDULES,
    EpochRamp,
    LearningRateRamp,
    Progress,
    Weight,
    weight_at,
)


class Holder(Config):
    weight: Weight = 1.0


def at_epoch(epoch: int, n_epochs: int = 100) -> Progress:
    return Progress(epoch, n_epochs, 0, 1e-3, 1e-3)


def at_rate(rate: float, initial: float = 1e-3) -> Progress:
    return Progress(0, 10, 0, rate, initial)


def test_ramp_takes_the_values_of_a_step_per_epoch():
    falling = EpochRamp(start=1.0, end=0.1, epochs=9)
    assert [falling.weight(at_epoch(k)) for k in range(9)] == pytest.approx(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], rel=1e-12
    )
    rising = EpochRamp(start=0.1, end=1.0, epochs=90)
    assert rising.weight(at_epoch(89)) == pytest.approx(0.99, rel=1e-12)


def test_ramp_meets_its_ends_exactly_and_stays():
    ramp = EpochRamp(start=0.1, end=0.7, epochs=7)
    assert ramp.weight(at_epoch(0)) == 0.1
    assert [ramp.weight(at_epoch(k)) for k in (7, 8, 99)] == [0.7, 0.7, 0.7]


def test_ramp_without_epochs_ends_with_the_last_epoch():
    ramp = EpochRamp(start=5.0, end=1.0)
    weights = [ramp.weight(at_epoch(k, 11)) for k in range(11)]
    assert weights[0] == 5.0
    assert weights[-1] == 1.0
    assert all(after < before for before, after in pairwise(weights))
    assert ramp.weight(at_epoch(0, 1)) == 5.0


def test_weight_follows_the_learning_rate():
    ramp = LearningRateRamp(start=10.0, end=0.5, end_learning_rate=1e-5)
    values = [ramp.weight(at_rate(rate)) for rate in (1e-3, 5e-4, 1e-5)]
    assert values == pytest.approx([10.0, 5.202, 0.5], abs=1e-4)
    assert values[0] == 10.0
    assert ramp.weight(at_rate(1e-6)) == 0.5


def test_weight_stays_where_the_rate_cannot_fall():
    ramp = LearningRateRamp(start=10.0, end=0.5, end_learning_rate=1e-2)
    assert ramp.weight(at_rate(1e-3)) == 10.0


def test_run_file_forms():
    assert build(Holder, {"weight": 3}, "run").weight == 3.0
    ramp = build(Holder, {"weight": {"start": 1, "end": 2}}, "run").weight
    assert ramp == EpochRamp(start=1.0, end=2.0)
    table = {"start": 1.0, "end": 2.0, "by": "learning_rate", "end_learning_rate": 1e-4}
    linear = build(Holder, {"weight": table}, "run")
    assert isinstance(linear.weight, WEIGHT_SCHEDULES["learning_rate"])
    assert build(Holder, linear.model_dump(mode="json"), "run") == linear
    assert weight_at(2.5, at_epoch(3)) == 2.5


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, r"run: weight: expected a number >= 0 or a table"),
        (float("nan"), r"run: weight: expected a number >= 0"),
        (True, r"expected a number >= 0"),
        ("high", r"expected a number >= 0"),
        ({"start": 1, "end": 2, "by": "epochs"}, r"by 'epochs' is unknown; did you mean epoch\?"),
        ({"strat": 1, "end": 2}, r"\[weight\] strat: unknown key; did you mean start\?"),
        ({"start": 1, "end": -2}, r"\[weight\] end: input should be greater than or equal to 0"),
        ({"start": 1, "end": 2, "epochs": 0}, r"\[weight\] epochs: input should be greater"),
    ],
)
def test_bad_weights_are_named(weight, message):
    with pytest.raises(ConfigError, match=message):
        build(Holder, {"weight": weight}, "run")
