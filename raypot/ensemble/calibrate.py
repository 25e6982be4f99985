"""From the spread between members to an error bar that means what it says.

    s^2 = sum_m w_m (x_m - mean)^2 / (1 - sum_m w_m^2)      spread, unbiased for equal weights
    sigma^2 = a s^2 + b,  a, b >= 0                         calibrated variance
    |error| <= q sigma for 90 % of the values               interval

a and b maximize the likelihood of the errors on the calibration rows, which nothing else has
seen. The constant b is what a few members need: their spread is a noisy number, and a factor
alone would turn its small values into false certainty. q is the split-conformal factor: it
replaces the 1.645 of the normal distribution by what the calibration rows show. A single member
has no spread, so that b alone remains: one error bar for all.

**Shapes** M members, n values (components of forces count as values).

**Source** affine variance: Levi et al., Sensors 22, 5540 (2022) for scaling, extended by a
constant; split conformal prediction: Papadopoulos et al., ECML 2002.
"""

from statistics import NormalDist

import numpy as np
from pydantic import Field

from raypot.config import Config
from raypot.errors import LabelError
from raypot.structures import Floats

COVERAGE = 0.9
ENOUGH_STRUCTURES = 200  # the standard error of a 90 % coverage is then 0.02
_SHARES = np.concatenate([[0.0], 1 / (1 + np.logspace(5, -5, 81)), [1.0]])  # of the spread's term
_GOLDEN = (np.sqrt(5) - 1) / 2
_NORMAL = NormalDist()


class Calibration(Config):
    """The error model of one property."""

    a: float = Field(ge=0, description="Factor of the squared spread.")
    b: float = Field(ge=0, description="Constant variance, in the unit squared.")
    factor: float = Field(ge=0, description="Half width of the 90 % interval over sigma.")
    constant: float = Field(ge=0, description="RMS error on the rows used: a constant error bar.")
    n_structures: int = Field(ge=1, description="Structures behind the fit.")
    n_values: int = Field(ge=1, description="Labelled components among them.")

    def std(self, spread: Floats) -> Floats:
        """Return the calibrated standard deviation, of the shape and unit of `spread`."""
        return np.asarray(np.sqrt(self.a * np.square(spread) + self.b))


def spread(values: Floats, weights: Floats) -> Floats:
    """Return the weighted standard deviation between members, with effective degrees of freedom.

    For equal weights it is the sample standard deviation with M - 1 in the denominator.

    Args:
        values: (M, ...).
        weights: not negative, sum one (M,).

    Returns:
        (...); zero for a single member.
    """
    freedom = 1.0 - np.square(weights).sum()
    if freedom < 1e-12:
        return np.zeros(values.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so
        deviation = np.square(values - np.tensordot(weights, values, 1))
    return np.asarray(np.sqrt(np.tensordot(weights, deviation, 1) / freedom))


def calibrate(spreads: Floats, errors: Floats, n_structures: int) -> Calibration:
    """Fit the error model of one property.

    Args:
        spreads: (n,).
        errors: prediction minus label (n,), in the same unit; no NaN.
        n_structures: how many structures the values come from.

    Raises:
        LabelError: there is no value.
    """
    if len(errors) == 0:
        raise LabelError("calibration: no labelled value; the calibration rows need labels")
    a, b = fit_affine(spreads, errors)
    std = np.sqrt(a * np.square(spreads) + b)
    return Calibration(
        a=a,
        b=b,
        factor=conformal_factor(std, errors),
        constant=rms(errors),
        n_structures=n_structures,
        n_values=len(errors),
    )


def fit_affine(spreads: Floats, errors: Floats) -> tuple[float, float]:
    """Maximize the likelihood of normal errors with variance a s^2 + b, a and b not negative.

    Written as c (t s^2 / <s^2> + 1 - t), the best c is known for every share t, so that a
    single number between 0 and 1 is searched: on a grid, then by golden section.

    Args:
        spreads: (n,).
        errors: (n,).

    Returns:
        a, and b in the unit squared.
    """
    squares, errors_squared = np.square(spreads), np.square(errors)
    mean = squares.mean()
    if mean == 0.0 or not errors_squared.any():
        return 0.0, float(errors_squared.mean())
    shape = squares / mean

    def loss(share: float) -> tuple[float, float]:
        """Return twice the negative log likelihood a value, and c."""
        form = share * shape + (1.0 - share)
        if form.min() <= 0.0:
            return np.inf, 0.0
        scale = float((errors_squared / form).mean())
        return float(np.log(scale) + np.log(form).mean()), scale

    at = int(np.argmin([loss(share)[0] for share in _SHARES]))
    low, high = _SHARES[max(at - 1, 0)], _SHARES[min(at + 1, len(_SHARES) - 1)]
    for _ in range(30):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if loss(left)[0] <= loss(right)[0] else (left, high)
    share = min((_SHARES[at], (low + high) / 2), key=lambda t: loss(t)[0])
    scale = loss(share)[1]
    return float(scale * share / mean), float(scale * (1.0 - share))


def conformal_factor(std: Floats, errors: Floats, coverage: float = COVERAGE) -> float:
    """Return q such that |error| <= q sigma holds for `coverage` of new values.

    It is the ceil((n + 1) coverage)-th smallest |error| / sigma; with fewer than nine values the
    largest, which then covers less.

    Args:
        std: calibrated (n,).
        errors: (n,).
        coverage: between 0 and 1.
    """
    ratios = np.sort(_ratios(std, errors))
    rank = int(np.ceil((len(ratios) + 1) * coverage))
    return float(ratios[min(rank, len(ratios)) - 1])


def normal_half_width(coverage: float = COVERAGE) -> float:
    """Return the half width of a central normal interval over sigma: 1.645 for 90 %."""
    return _NORMAL.inv_cdf((1.0 + coverage) / 2.0)


def rms(values: Floats) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def _ratios(std: Floats, errors: Floats) -> Floats:
    """Return |error| / sigma, with 0 / 0 as 0."""
    sizes = np.abs(errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sizes == 0.0, 0.0, sizes / std)
