"""How good error bars are, on rows that played no part in making them.

**Shapes** n values.

**Source** miscalibration area: Tran et al., Mach. Learn.: Sci. Technol. 1, 025006 (2020); ENCE:
Levi et al., Sensors 22, 5540 (2022).
"""

from statistics import NormalDist

import numpy as np

from raypot.structures import Floats

N_LEVELS = 100
N_BINS = 10
N_SIMULATED = 20_000  # draws behind the ceiling of the rank correlation

_LEVELS = np.arange(1, N_LEVELS) / N_LEVELS
_HALF_WIDTHS = np.array([NormalDist().inv_cdf((1 + level) / 2) for level in _LEVELS])


def judge(std: Floats, errors: Floats, factor: float, constant: float) -> dict[str, float]:
    """Return every measure of the error bars of one property.

    Args:
        std: calibrated (n,).
        errors: prediction minus label (n,), in the same unit.
        factor: half width of the 90 % interval over sigma.
        constant: a constant error bar to compare with.

    Returns:
        `nll`, `nll_constant` (the same for the constant error bar), `miscalibration_area`,
        `coverage_90`, `ence`, `spearman` and `spearman_ceiling`; NaN where a measure is not
        defined, such as a rank correlation of equal error bars.
    """
    return {
        "nll": nll(std, errors),
        "nll_constant": nll(np.full_like(std, constant), errors),
        "miscalibration_area": miscalibration_area(std, errors),
        "coverage_90": coverage(std, errors, factor),
        "ence": ence(std, errors),
        "spearman": spearman(std, np.abs(errors)),
        "spearman_ceiling": spearman_ceiling(std),
    }


def nll(std: Floats, errors: Floats) -> float:
    """Return the mean negative log likelihood, 0.5 (ln(2 pi sigma^2) + error^2 / sigma^2).

    It has the logarithm of the unit in it: only differences mean anything.
    """
    variance = np.square(std)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = 0.5 * (np.log(2 * np.pi * variance) + np.square(errors) / variance)
    return float(terms.mean())


def miscalibration_area(std: Floats, errors: Floats) -> float:
    """Return the area between observed and expected coverage of all central intervals.

    0 is perfect, 0.5 the worst: all errors outside of every interval, or all inside.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(np.abs(errors) / std)
    observed = np.searchsorted(ratios, _HALF_WIDTHS, side="right") / len(ratios)
    return float(np.abs(observed - _LEVELS).sum() / N_LEVELS)


def coverage(std: Floats, errors: Floats, factor: float) -> float:
    """Return the share of errors within `factor` times sigma."""
    return float((np.abs(errors) <= factor * std).mean())


def ence(std: Floats, errors: Floats) -> float:
    """Return the expected normalized calibration error.

    Values are sorted by sigma into bins of equal size; it is the mean over bins of
    |RMS(sigma) - RMS(error)| / RMS(sigma).
    """
    order = np.argsort(std, kind="stable")
    n_bins = max(1, min(N_BINS, len(std) // N_BINS))
    ratios = []
    for members in np.array_split(order, n_bins):
        expected = np.sqrt(np.square(std[members]).mean())
        found = np.sqrt(np.square(errors[members]).mean())
        ratios.append(abs(expected - found) / expected if expected > 0 else np.nan)
    return float(np.mean(ratios))


def spearman(first: Floats, second: Floats) -> float:
    """Return the correlation of the ranks, equal values sharing theirs; NaN if one is constant."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (first, second)]
    norm = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else np.nan


def spearman_ceiling(std: Floats, seed: int = 90_210) -> float:
    """Return the rank correlation that these error bars would have if they were perfect.

    Errors are drawn from normal distributions of the given widths. The ceiling is below one
    because a wide distribution gives small errors too, and low where all widths are alike.
    """
    generator = np.random.default_rng(seed)
    draws = max(1, N_SIMULATED // len(std))
    widths = np.tile(std, draws)[:: max(1, len(std) // N_SIMULATED)]
    return spearman(widths, np.abs(widths * generator.standard_normal(len(widths))))


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[place])
