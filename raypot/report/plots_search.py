"""The figures of a search: how the best score fell, and every trial's learning curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raypot.report.plots import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    count_along,
    draw_svg,
    log_scale,
    thin,
)
from raypot.tune.trial import TrialRow

MAX_TRIALS = 60  # curves in one plot

Curves = Mapping[int, Sequence[Mapping[str, float]]]


def search_history(trials: Sequence[TrialRow], title: str) -> str:
    """Plot the score of every trial and the best so far."""
    kinds = {"complete": ("o", BLUE), "pruned": ("x", ORANGE), "running": ("D", GREEN)}

    def draw(panel: Any) -> None:
        scored = [(t.number, t.value, t.state) for t in trials if t.value is not None]
        for state, (marker, color) in kinds.items():
            points = [(number, value) for number, value, kind in scored if kind == state]
            if points:
                panel.scatter(
                    *zip(*points, strict=True), marker=marker, color=color, s=22, label=state,
                    zorder=3,
                )  # fmt: skip
        best = np.minimum.accumulate(np.array([value for _, value, _ in scored]))
        panel.step(
            [number for number, _, _ in scored], best, where="post", color=GRAY, linewidth=1.2,
            label="best so far",
        )  # fmt: skip
        for trial in trials:
            if trial.state == "failed":
                panel.axvline(trial.number, color=RED, linestyle=":", linewidth=1.0)
        count_along(panel, "trial")
        panel.set(ylabel="score on val (lower is better)")
        log_scale(panel, "y")
        panel.margins(x=0.04)
        panel.legend()

    return draw_svg(title, draw)


def trial_curves(trials: Sequence[TrialRow], curves: Curves, best: int | None, title: str) -> str:
    """Plot the score of every trial over epochs; a cross where it was pruned.

    Args:
        trials: at most `MAX_TRIALS` are drawn; the caller picks them.
        curves: trial number to the rows of its metrics.
        best: number of the trial to point out.
        title: what it shows.
    """

    def draw(panel: Any) -> None:
        for trial in trials:
            points = [
                (row["epoch"], row["val/score"])
                for row in thin(curves[trial.number])
                if "val/score" in row
            ]
            if not points:
                continue
            is_best = trial.number == best
            color, width = (BLUE, 2.0) if is_best else (GRAY, 0.8)
            order = 3 if is_best else 2
            panel.plot(*zip(*points, strict=True), color=color, linewidth=width, zorder=order)
            if trial.state == "pruned":
                panel.scatter(*points[-1], marker="x", color=ORANGE, s=24, zorder=4)
            elif len(points) == 1:
                panel.scatter(*points[-1], marker=".", color=color, s=16, zorder=order)
        if best is not None:
            panel.plot([], [], color=BLUE, linewidth=2.0, label=f"best: trial {best}")
        panel.plot([], [], color=GRAY, linewidth=0.8, label="others")
        panel.scatter([], [], marker="x", color=ORANGE, s=24, label="pruned here")
        count_along(panel, "epoch")
        panel.set(ylabel="score on val")
        log_scale(panel, "y")
        panel.legend()

    return draw_svg(title, draw)
