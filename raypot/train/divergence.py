"""When a run has gone astray: a pure verdict on the numbers of an epoch.

**Shapes** T terms.
"""

import math
from collections.abc import Mapping, Sequence

SPIKE = 25.0  # times the best that the run has seen
MAX_ROLLBACKS = 3


def has_diverged(
    row: Mapping[str, float],
    monitored: float,
    best_monitored: float | None,
    lowest: Mapping[str, float],
) -> bool:
    """Say whether an epoch ended in NaN, infinity, or far above what was reached before.

    The training loss is compared under the weights of this epoch, so that a weight that grows by
    its schedule is not taken for a spike.

    Args:
        row: of the epoch, with `train/loss`, `val/loss`, and `train/<term>`, `weight/<term>`.
        monitored: the number by which models are compared on validation rows.
        best_monitored: the lowest of it so far; None in the first epoch.
        lowest: lowest mean of each term over the training rows so far; empty in the first epoch.
    """
    if not all(math.isfinite(value) for value in (row["train/loss"], row["val/loss"], monitored)):
        return True
    if best_monitored is None:
        return False
    floor = sum(row[f"weight/{name}"] * value for name, value in lowest.items())
    return monitored > SPIKE * best_monitored or row["train/loss"] > SPIKE * floor > 0


def lowest_terms(
    names: Sequence[str], row: Mapping[str, float], lowest: Mapping[str, float]
) -> dict[str, float]:
    """Return the lowest mean of each of the T terms, this epoch included."""
    return {name: min(row[f"train/{name}"], lowest.get(name, math.inf)) for name in names}
