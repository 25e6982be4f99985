"""Learning rates: end points, warm-up, plateaus; and the verdict that ends a run."""

import json
import math
from itertools import pairwise

import pytest

from raypot.train.rates import LR_SCHEDULES, CosineRate, PlateauRate, RateState, verdict

FRESH = RateState()


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_warm_up_rises_to_the_initial_rate(name):
    schedule = LR_SCHEDULES[name](warmup_steps=4)
    rates = [schedule.rate(1e-2, step, 10**9, FRESH) for step in range(6)]
    assert rates[:5] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2])
    assert all(before <= after for before, after in pairwise(rates[:5]))
    assert schedule.plain_rate(1e-2, 0, 10**9, FRESH) == 1e-2


def test_cosine_meets_both_ends_exactly_and_falls_between():
    schedule = CosineRate(warmup_steps=10)
    rates = [schedule.plain_rate(1e-2, step, 110, FRESH, 1e-5) for step in range(10, 111)]
    assert rates[0] == 1e-2
    assert rates[-1] == pytest.approx(1e-5, rel=1e-12)
    assert rates[50] == pytest.approx((1e-2 + 1e-5) / 2)
    assert all(after < before for before, after in pairwise(rates))
    assert schedule.rate(1e-2, 500, 110, FRESH, 1e-5) == rates[-1]


def test_plateau_cuts_after_patience_and_not_below_the_floor():
    schedule = PlateauRate(factor=0.5, patience=2, threshold=0.01)
    state, rates = FRESH, []
    for value in (1.0, 0.5, 0.499, 0.6, 0.6, 0.6, 0.1, math.nan, math.nan):
        state = schedule.advance(state, value)
        rates.append(schedule.rate(8e-3, 0, 1, state, 1e-3))
    assert rates == [8e-3, 8e-3, 8e-3, 4e-3, 4e-3, 2e-3, 2e-3, 2e-3, 1e-3]
    for _ in range(10):
        state = schedule.advance(state, 1.0)
    assert schedule.rate(8e-3, 0, 1, state, 1e-3) == 1e-3


def test_plateau_goes_on_where_it_was_saved():
    schedule, state = PlateauRate(patience=3), FRESH
    for value in (math.nan, 2.0, 3.0):
        state = schedule.advance(state, value)
    again = RateState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
    assert again == state
    assert schedule.advance(again, 3.0) == schedule.advance(state, 3.0)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_others_have_no_memory(name):
    assert LR_SCHEDULES[name]().advance(FRESH, 1.0) == FRESH


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], "continue"),
        ([3.0, 2.0, 2.5], "continue"),
        ([3.0, 2.0, 2.5, 2.5], "stop"),
        ([3.0, 2.0, 2.5, 1.0], "continue"),
        ([math.nan, 2.0, math.nan], "continue"),
        ([math.nan, math.nan, math.nan], "stop"),
        ([2.0, 2.0, 2.0], "stop"),
    ],
)
def test_verdict_on_patience(history, expected):
    assert verdict(history, patience=2) == expected


def test_verdict_on_the_rate():
    assert verdict([1.0], 9, learning_rate=1e-6, min_learning_rate=1e-6) == "stop"
    assert verdict([1.0], 9, learning_rate=2e-6, min_learning_rate=1e-6) == "continue"
