"""What a search tells its caller while it runs."""

from typing import NamedTuple


class SearchEvent(NamedTuple):
    """How a search stands.

    Attributes:
        done: trials that are finished: complete, pruned or failed.
        running: trials that train now.
        pruned: trials that were stopped early.
        failed: trials that failed.
        total: different configurations that will have been tried.
        best: lowest val/score so far.
        best_number: its trial.
        best_metrics: the row of its best epoch, in raypot's units.
        structures_per_second: summed over the running trials.
        elapsed_s: since this driver began.
        eta_s: expected rest; None before the first trial has finished.
    """

    done: int
    running: int
    pruned: int
    failed: int
    total: int
    best: float | None
    best_number: int | None
    best_metrics: dict[str, float]
    structures_per_second: float
    elapsed_s: float
    eta_s: float | None
