"""What a study tells about its trials, read from the attempts that Optuna keeps.

A trial keeps its number and its folder when its driver dies: every new attempt is another entry
of the journal that names the one before it (`retry_of`), and here they are one trial again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
# Names of the attributes of an attempt in the journal.
CONFIG, ROOT, RETRY_OF, DUPLICATE_OF, RESULT, REASON = (
    "config", "number", "retry_of", "duplicate_of", "result", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class TrialRow:
    """One configuration and what became of it.

    Args:
        number: of the trial, and the name of its folder.
        state: complete, pruned, failed, running or waiting (to be tried again).
        value: lowest val/score so far; None before the first epoch or after a failure.
        params: values of the ranges by dotted path.
        config: resolved run settings.
        metrics: row of the best epoch, in raypot's units.
        epochs: epochs that were trained.
        reason: why it was pruned or failed, else empty.
        folder: run folder.
        wall_s: seconds of training, over all attempts; 0 until it ends.
        attempts: how often it was started.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, float]
    epochs: int
    reason: str
    folder: Path
    wall_s: float
    attempts: int = 1

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be done for it."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def has_model(self) -> bool:
        """Whether it left a model that can be used."""
        return self.state in ("complete", "pruned") and self.value is not None


def trial_rows(attempts: Iterable[FrozenTrial], folder: Path) -> list[TrialRow]:
    """Return one row per configuration, by number.

    Args:
        attempts: every entry of the journal.
        folder: the study.
    """
    chains: dict[int, list[FrozenTrial]] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        attrs = attempt.user_attrs
        if DUPLICATE_OF in attrs or (CONFIG not in attrs and RETRY_OF not in attrs):
            continue  # never a configuration of its own
        chains.setdefault(attrs.get(ROOT, attempt.number), []).append(attempt)
    return [_row(number, chain, folder) for number, chain in sorted(chains.items())]


def _row(number: int, chain: list[FrozenTrial], folder: Path) -> TrialRow:
    """Return the row of one trial; its last attempt says how it stands."""
    last = chain[-1]
    started = [attempt for attempt in chain if CONFIG in attempt.user_attrs]
    config = started[-1].user_attrs[CONFIG] if started else {}
    result = last.user_attrs.get(RESULT, {})
    reports = {k: v for attempt in chain for k, v in attempt.intermediate_values.items()}
    value = min(reports.values(), default=None)
    if last.state in (TrialState.COMPLETE, TrialState.PRUNED):
        value = last.value if last.value is not None else value
    if last.state == TrialState.FAIL:
        value = None
    return TrialRow(
        number=number,
        state=STATES[last.state],
        value=value,
        params=started[-1].params if started else {},
        config=config,
        metrics=result.get("metrics", {}),
        epochs=max([result.get("epochs", 0), *reports]),
        reason=last.user_attrs.get(REASON, ""),
        folder=folder / "trials" / str(number),
        wall_s=result.get("wall_s", 0.0),
        attempts=len(started),
    )


def same_params(attempt: FrozenTrial, others: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the first of `others` with the parameters of `attempt`, or None."""
    for other in others:
        same = other.number != attempt.number and other.params == attempt.params
        if same and CONFIG in other.user_attrs and DUPLICATE_OF not in other.user_attrs:
            return other
    return None
