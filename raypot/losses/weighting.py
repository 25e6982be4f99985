"""The total loss: terms with their weights over time.

**Shapes** T terms, S structures.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from raypot.batch import Batch
from raypot.errors import ConfigError, LabelError
from raypot.losses.schedules import (
    WEIGHT_SCHEDULES,
    EpochRamp,
    LearningRateRamp,
    Progress,
    weight_at,
)
from raypot.losses.terms import TERMS, TermConfig, check_term

__all__ = ["WEIGHT_SCHEDULES", "EpochRamp", "LearningRateRamp", "Progress", "TotalLoss"]


class TotalLoss:
    """loss = sum_t weight_t total_t / count_t.

    Totals and counts are sums over structures. Whoever holds several micro-batches or ranks sums
    the counts first, which needs no prediction, and takes the gradient of
    sum_t scale_t total_t with scale_t = weight_t / count_t in each of them.

    Args:
        terms: property name to its settings. A constant weight of 0 removes the term.

    Raises:
        ConfigError: an unknown term, a norm that does not fit, or no weight at all.
    """

    def __init__(self, terms: Mapping[str, TermConfig]) -> None:
        for name, config in terms.items():
            try:
                check_term(name, config)
            except ValueError as error:
                raise ConfigError(f"[loss.{name}] {error}", name=name) from error
        self.terms = {name: config for name, config in terms.items() if config.weight != 0}
        if not self.terms:
            raise ConfigError("[loss]: no term has a weight; give at least one a weight above 0")

    @property
    def names(self) -> tuple[str, ...]:
        """The T terms, in the order of every tensor below."""
        return tuple(self.terms)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The properties that a prediction must hold."""
        return tuple(self.terms)

    def check_labels(self, n_labels: Mapping[str, int], where: str) -> None:
        """Refuse data in which a term has nothing to learn from.

        Args:
            n_labels: structures that have a label, by property.
            where: the data, for the message.

        Raises:
            LabelError: naming the term.
        """
        for name in self.names:
            if not n_labels.get(name, 0):
                raise LabelError(
                    f"{where}: no structure has a label `{name}`, but its loss weight is not 0; "
                    f"check the keys of the import or set loss.{name}.weight=0",
                    name=name,
                )

    def counts(self, batch: Batch) -> Tensor:
        """Count what each term sums over, from the labels alone: (T,) float64."""
        return torch.stack([TERMS[name].count(batch, c) for name, c in self.terms.items()])

    def weights(self, progress: Progress) -> Tensor:
        """Return the weights in force: (T,) float64, on the CPU."""
        values = [weight_at(config.weight, progress) for config in self.terms.values()]
        return torch.tensor(values, dtype=torch.float64)

    def scales(self, progress: Progress, counts: Tensor) -> Tensor:
        """Return weight / count, the factor of each total; 0 for a term without a label.

        Args:
            progress: where the run stands.
            counts: (T,) summed over micro-batches and ranks.

        Returns:
            (T,) float64 on the device of `counts`.
        """
        weights = self.weights(progress).to(counts.device)
        return torch.where(counts > 0, weights / counts.clamp(min=1), 0.0)

    def totals(self, predicted: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Sum the errors of each term: (T,), each in the unit of its error.

        Args:
            predicted: every property of `wanted`.
            batch: with the labels.
        """
        return torch.stack(
            [TERMS[name].total(predicted[name], batch, c) for name, c in self.terms.items()]
        )
