"""Calibration against simulated exchangeable ensembles, whose answer is known."""

import numpy as np
import pytest

from raypot.ensemble.calibrate import (
    calibrate,
    conformal_factor,
    fit_affine,
    normal_half_width,
    rms,
    spread,
)
from raypot.ensemble.judge import (
    coverage,
    ence,
    judge,
    miscalibration_area,
    nll,
    spearman,
    spearman_ceiling,
)
from raypot.errors import LabelError

RAW = {2: (0.173, 0.59), 3: (0.112, 0.71), 4: (0.082, 0.76), 5: (0.068, 0.79), 8: (0.041, 0.84)}


def simulate(rng, n_members, n=40_000, rho=0.0, log_spread=0.5):
    """Spread and error of an ideal ensemble.

    Members and truth are draws of one distribution whose width differs from value to value; with
    rho, a part of the members' error is shared.
    """
    width = np.exp(log_spread * rng.standard_normal(n))
    shared = np.sqrt(rho) * rng.standard_normal(n)
    own = np.sqrt(1 - rho) * rng.standard_normal((n_members, n))
    members = width * (own + shared)
    truth = width * rng.standard_normal(n) if rho == 0 else np.zeros(n)
    spreads = spread(members, np.full(n_members, 1 / n_members))
    return spreads, members.mean(0) - truth, width


@pytest.mark.parametrize("n_members", RAW)
def test_raw_spread_is_overconfident_as_expected(rng, n_members):
    area, covered = RAW[n_members]
    spreads, errors, _ = simulate(rng, n_members, 200_000)
    assert miscalibration_area(spreads, errors) == pytest.approx(area, abs=0.004)
    assert coverage(spreads, errors, normal_half_width()) == pytest.approx(covered, abs=0.006)


@pytest.mark.parametrize(("rho", "area", "covered"), [(0.7, 0.17, 0.64), (0.9, 0.31, 0.39)])
def test_a_shared_error_hides_from_the_spread(rng, rho, area, covered):
    spreads, errors, _ = simulate(rng, 5, 200_000, rho=rho)
    assert miscalibration_area(spreads, errors) == pytest.approx(area, abs=0.01)
    assert coverage(spreads, errors, normal_half_width()) == pytest.approx(covered, abs=0.01)


@pytest.mark.parametrize("n_members", RAW)
def test_affine_variance_beats_one_factor_and_the_constant(rng, n_members):
    """500 values to calibrate, 39,500 to judge, as a mean over repetitions."""
    rows = []
    for _ in range(20):
        spreads, errors, width = simulate(rng, n_members)
        oracle = nll(width * np.sqrt(1 + 1 / n_members), errors)
        fitted = calibrate(spreads[:500], errors[:500], 500)
        factor = rms(errors[:500] / spreads[:500])
        spreads, errors = spreads[500:], errors[500:]
        std = fitted.std(spreads)
        rows.append(
            (
                nll(std, errors) - oracle,
                nll(factor * spreads, errors) - oracle,
                nll(np.full_like(errors, fitted.constant), errors) - oracle,
                miscalibration_area(std, errors),
                coverage(std, errors, fitted.factor),
            )
        )
    affine, one_factor, constant, area, covered = np.median(rows, axis=0)
    expected = {2: 0.21, 3: 0.17, 4: 0.12, 5: 0.11, 8: 0.069}[n_members]
    assert affine == pytest.approx(expected, abs=0.035)
    assert affine < one_factor
    assert affine < constant
    assert (one_factor > constant) == (n_members <= 4)
    assert area < 0.07
    assert covered == pytest.approx(0.9, abs=0.015)


def test_fit_recovers_both_constants(rng):
    spreads = rng.gamma(2.0, 0.05, 100_000)
    errors = np.sqrt(1.7 * spreads**2 + 0.004) * rng.standard_normal(len(spreads))
    a, b = fit_affine(spreads, errors)
    assert a == pytest.approx(1.7, rel=0.05)
    assert b == pytest.approx(0.004, rel=0.05)


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.0), (0.0, 0.03)])
def test_fit_stays_at_the_boundary_of_what_is_allowed(rng, a, b):
    spreads = rng.uniform(0.05, 0.5, 50_000)
    errors = np.sqrt(a * spreads**2 + b) * rng.standard_normal(len(spreads))
    found = fit_affine(spreads, errors)
    assert min(found) >= 0
    assert found == pytest.approx((a, b), abs=0.05 * (a + b))


def test_fit_is_the_maximum_of_the_likelihood(rng):
    spreads, errors, _ = simulate(rng, 3, 400)
    a, b = fit_affine(spreads, errors)
    at_best = nll(np.sqrt(a * spreads**2 + b), errors)
    for factors in rng.lognormal(0, 0.1, (200, 2)):
        std = np.sqrt(a * factors[0] * spreads**2 + b * factors[1])
        assert nll(std, errors) >= at_best - 1e-9


def test_fit_scales_with_the_unit(rng):
    spreads, errors, _ = simulate(rng, 4, 500)
    a, b = fit_affine(spreads, errors)
    scaled = fit_affine(1e-3 * spreads, 1e-3 * errors)
    assert scaled == pytest.approx((a, 1e-6 * b), rel=1e-6)


def test_one_member_gets_one_error_bar(rng):
    errors = 0.3 * rng.standard_normal(2000)
    spreads = spread(rng.standard_normal((1, 2000)), np.ones(1))
    assert not spreads.any()
    fitted = calibrate(spreads, errors, 2000)
    assert fitted.a == 0.0
    assert fitted.std(spreads) == pytest.approx(np.full(2000, rms(errors)))
    assert fitted.factor == pytest.approx(1.645, abs=0.08)


def test_errors_of_zero_give_error_bars_of_zero(rng):
    fitted = calibrate(rng.uniform(0.1, 1, 50), np.zeros(50), 50)
    assert (fitted.a, fitted.b, fitted.factor) == (0.0, 0.0, 0.0)


def test_no_value_cannot_be_calibrated():
    with pytest.raises(LabelError, match="no labelled value"):
        calibrate(np.zeros(0), np.zeros(0), 0)


def test_spread_of_equal_weights_is_the_sample_deviation(rng):
    values = rng.standard_normal((5, 7, 3))
    assert spread(values, np.full(5, 0.2)) == pytest.approx(values.std(axis=0, ddof=1), rel=1e-12)


def test_spread_is_unbiased_for_unequal_weights(rng):
    weights = np.array([0.6, 0.3, 0.1])
    variance = np.square(spread(rng.standard_normal((3, 200_000)), weights)).mean()
    assert variance == pytest.approx(1.0, abs=0.01)


def test_a_member_without_weight_does_not_count(rng):
    values = rng.standard_normal((3, 10))
    with_it = spread(values, np.array([0.5, 0.5, 0.0]))
    assert with_it == pytest.approx(spread(values[:2], np.array([0.5, 0.5])))


@pytest.mark.parametrize("n", [10, 50, 400])
def test_conformal_factor_covers_new_values(rng, n):
    """Over many calibration sets, a new value is inside with at least 90 %."""
    inside = [
        abs(rng.standard_t(3)) <= conformal_factor(np.ones(n), rng.standard_t(3, n))
        for _ in range(4000)
    ]
    assert 0.9 - 0.015 <= np.mean(inside) <= 0.9 + 1 / (n + 1) + 0.015


def test_conformal_factor_of_few_values_is_the_largest_ratio():
    assert conformal_factor(np.ones(3), np.array([0.1, -2.0, 1.0])) == 2.0


@pytest.mark.parametrize(
    ("log_spread", "ceiling"),
    [(0.1, 0.11), (0.25, 0.26), (0.5, 0.46), (0.75, 0.59), (1.0, 0.69), (1.5, 0.81)],
)
def test_rank_correlation_has_a_ceiling(rng, log_spread, ceiling):
    width = np.exp(log_spread * rng.standard_normal(20_000))
    assert spearman_ceiling(width) == pytest.approx(ceiling, abs=0.02)
    assert spearman_ceiling(width[:300]) == pytest.approx(ceiling, abs=0.06)
    errors = width * rng.standard_normal(len(width))
    assert spearman(width, np.abs(errors)) == pytest.approx(ceiling, abs=0.02)


def test_perfect_error_bars_get_perfect_marks(rng):
    width = np.exp(0.5 * rng.standard_normal(50_000))
    marks = judge(width, width * rng.standard_normal(len(width)), normal_half_width(), 1.0)
    assert marks["miscalibration_area"] < 0.01
    assert marks["ence"] < 0.03
    assert marks["coverage_90"] == pytest.approx(0.9, abs=0.005)
    assert marks["nll"] < marks["nll_constant"]


def test_marks_punish_error_bars_that_are_too_small(rng):
    errors = rng.standard_normal(5000)
    assert miscalibration_area(np.full(5000, 1e-6), errors) == pytest.approx(0.495, abs=0.001)
    assert miscalibration_area(np.full(5000, 1e6), errors) == pytest.approx(0.495, abs=0.001)
    assert ence(np.full(5000, 0.5), errors) == pytest.approx(1.0, abs=0.05)


def test_nll_of_the_true_width_is_the_entropy(rng):
    errors = 0.2 * rng.standard_normal(100_000)
    expected = 0.5 * np.log(2 * np.pi * np.e * 0.04)
    assert nll(np.full(len(errors), 0.2), errors) == pytest.approx(expected, abs=0.01)


def test_spearman_shares_ranks_and_is_undefined_for_constants():
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 5.0, 5.0, 9.0])) == 1.0
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1.0
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
