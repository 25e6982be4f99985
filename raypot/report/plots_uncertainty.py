"""The figures about error bars: reliability, and error against uncertainty."""

from statistics import NormalDist
from typing import Any

import numpy as np

from raypot.report.judged import Judged
from raypot.report.plots import BLUE, GRAY, ORANGE, cloud, draw_svg, label_of, log_scale, unit_of
from raypot.structures import Floats

LEVELS = np.linspace(0.02, 0.98, 49)
N_BINS = 12
_HALF_WIDTHS = np.array([NormalDist().inv_cdf((1.0 + level) / 2.0) for level in LEVELS])


def observed_coverage(std: Floats, errors: Floats) -> Floats:
    """Return the share of errors inside the central normal interval of each of `LEVELS`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(np.where(errors == 0.0, 0.0, np.abs(errors) / std))
    return np.searchsorted(ratios, _HALF_WIDTHS, side="right") / len(ratios)


def reliability(one: Judged, role: str) -> str:
    """Plot how often errors lie inside of their intervals, before and after calibration."""

    def draw(panel: Any) -> None:
        panel.plot([0, 1], [0, 1], color=GRAY, linewidth=0.9)
        if one.spread is not None:
            before = observed_coverage(one.spread, one.error)
            panel.plot(LEVELS, before, color=ORANGE, linestyle="--", label="raw spread")
        if one.std is not None:
            after = observed_coverage(one.std, one.error)
            panel.plot(LEVELS, after, color=BLUE, label="calibrated")
        panel.set(xlabel="expected coverage", ylabel="observed coverage")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.set_title(label_of(one.name), fontsize=9)
        panel.legend()

    return draw_svg(f"{label_of(one.name)} on {role}: reliability of the error bars", draw)


def error_against_std(one: Judged, role: str) -> str:
    """Plot absolute errors over calibrated uncertainties, with the RMS error of bins."""
    factor, unit = unit_of(one.name)
    std = np.zeros_like(one.error) if one.std is None else one.std
    visible = (std > 0) & (one.error != 0)  # on logarithmic axes
    bars, errors = std[visible] * factor, np.abs(one.error[visible]) * factor

    def draw(panel: Any) -> None:
        panel.set(xlabel=f"uncertainty, {unit}", ylabel=f"|error|, {unit}")
        panel.set_title(label_of(one.name), fontsize=9)
        if not len(bars):
            return
        cloud(panel, bars, errors, log=True)
        x, y = binned(bars, errors)
        ends = [bars.min(), bars.max()]
        panel.plot(ends, ends, color=GRAY, linewidth=1.2, label="error = uncertainty")
        panel.plot(x, y, color=ORANGE, marker="o", markersize=3, label="RMS error of bins")
        panel.set(ylim=(np.quantile(errors, 0.01), errors.max() * 1.5))
        log_scale(panel, "x", "y")
        panel.legend(loc="lower right")

    return draw_svg(f"{label_of(one.name)} on {role}: error over uncertainty", draw)


def binned(std: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Return RMS uncertainty and RMS error of bins of equal size, by rising uncertainty."""
    order = np.argsort(std, kind="stable")
    parts = np.array_split(order, max(1, min(N_BINS, len(std) // 10)))
    rms = [
        (np.sqrt(np.square(std[part]).mean()), np.sqrt(np.square(errors[part]).mean()))
        for part in parts
    ]
    x, y = np.array(rms).T
    return x, y
