"""Errors of predictions: sums on the device, root mean squares and means at the end.

The labels are masked as in the loss terms; weights of structures do not enter.

**Shapes** M metrics.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from raypot.batch import Batch
from raypot.errors import LabelError
from raypot.losses.terms import labelled, masked_difference

SCORED = ("energy_per_atom", "forces")


class Metric(NamedTuple):
    """One error that is reported as root mean square and as mean absolute value.

    Args:
        property: row of the property table.
        is_per_atom: divide by the atoms of the structure first.
    """

    property: str
    is_per_atom: bool = False


METRICS: dict[str, Metric] = {
    "energy": Metric("energy"),
    "energy_per_atom": Metric("energy", is_per_atom=True),
    "forces": Metric("forces"),
    "stress": Metric("stress"),
    "charges": Metric("charges"),
    "dipole": Metric("dipole"),
}


class ErrorSums:
    """Sums of squared and absolute errors of every metric.

    `sums` (M, 3) float64 holds the squares, the absolute values and the count of components. It is
    one tensor, so that one all-reduce merges ranks and one copy brings it to the CPU.

    Args:
        properties: what is predicted and labelled; each gives its metrics.
        device: where the sums are kept.
    """

    def __init__(self, properties: Iterable[str], device: torch.device | str = "cpu") -> None:
        wanted = set(properties)
        self.names = tuple(name for name, metric in METRICS.items() if metric.property in wanted)
        self.sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=device)

    def add(self, predicted: Mapping[str, Tensor], batch: Batch) -> None:
        """Add the errors of a batch, without waiting for the device.

        Args:
            predicted: at least the properties of this object.
            batch: with their labels.
        """
        rows = [_sums(METRICS[name], predicted, batch) for name in self.names]
        if rows:
            self.sums += torch.stack(rows)

    def merge(self, other: "ErrorSums") -> None:
        """Add the sums of another part of the data."""
        self.sums += other.sums.to(self.sums.device)

    def result(self) -> dict[str, float]:
        """Return `<metric>/rmse` and `<metric>/mae`; a metric without a label is left out."""
        errors = {}
        for name, (squares, absolutes, count) in zip(self.names, self.sums.tolist(), strict=True):
            if count:
                errors[f"{name}/rmse"] = math.sqrt(squares / count)
                errors[f"{name}/mae"] = absolutes / count
        return errors


def _sums(metric: Metric, predicted: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return squares, absolute values and count of one metric (3,) float64."""
    name = metric.property
    error = masked_difference(name, predicted[name].detach(), batch).double()
    if metric.is_per_atom:
        error = error / batch.n_atoms.double()
    count = labelled(name, batch).sum().double()
    return torch.stack([error.square().sum(), error.abs().sum(), count])


def score(metrics: Mapping[str, float], spread: Mapping[str, float]) -> float:
    """Judge a model by one number without weights; lower is better, 1 is no better than a mean.

    It is the geometric mean of rmse / spread over the energy per atom and the forces, those that
    are present in both; a model without either is judged by everything that it has.

    Args:
        metrics: `<metric>/rmse` as `ErrorSums.result` gives it.
        spread: metric name to the spread of its training labels, in the same unit.

    Raises:
        LabelError: nothing to judge by, or labels that do not vary.
    """
    present = [name for name in METRICS if f"{name}/rmse" in metrics and name in spread]
    names = [name for name in SCORED if name in present] or present
    if not names:
        raise LabelError(
            f"score: no metric of {', '.join(metrics) or 'none'} has a spread "
            f"({', '.join(spread) or 'none given'}); label energy or forces"
        )
    ratios = []
    for name in names:
        if not spread[name] > 0:
            raise LabelError(
                f"score: the training labels of {name} have spread {spread[name]}, expected more "
                "than 0; add structures that differ",
                name=name,
            )
        ratios.append(metrics[f"{name}/rmse"] / spread[name])
    return float(math.prod(ratios) ** (1 / len(ratios)))
