"""Predictions against labels: errors with their error bars, and what they amount to.

**Shapes** M members, S structures, N atoms.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raypot.ensemble.prediction import Prediction, join
from raypot.ensemble.predictor import Predictor
from raypot.errors import LabelError
from raypot.properties import PROPERTIES
from raypot.structures import Block, Booleans, Floats, Integers

PER_ATOM = "energy_per_atom"


class Errors(NamedTuple):
    """Prediction minus label. NaN where there is no label.

    Every dictionary goes from a metric (a property, or `energy_per_atom`) to an array over
    structures (S, ...) or atoms (N, ...), in the unit of the metric.
    """

    offsets: Integers  # first atom of each structure, and the end (S + 1,)
    ensemble: dict[str, Floats]
    spreads: dict[str, Floats]  # between members; zero where there is one member only
    stds: dict[str, Floats]  # calibrated; only what has a calibration
    members: dict[str, Floats]  # (M, S, ...) or (M, N, ...)

    @property
    def n_structures(self) -> int:
        """The number S of structures."""
        return len(self.offsets) - 1

    def of_member(self, index: int) -> dict[str, Floats]:
        """Return the errors of one member."""
        return {name: errors[index] for name, errors in self.members.items()}

    def labelled(self, name: str) -> Booleans:
        """Say which structures have a label (S,)."""
        rows = ~np.isnan(self.ensemble[name]).all(axis=tuple(range(1, self.ensemble[name].ndim)))
        if name == PER_ATOM or PROPERTIES[name].level == "structure":
            return np.asarray(rows)
        return np.logical_or.reduceat(rows, self.offsets[:-1])


def collect(
    predictor: Predictor,
    blocks: Iterable[Block],
    properties: Sequence[str],
    *,
    where: str = "data",
    check: bool = True,
) -> Errors:
    """Predict labelled structures and subtract the labels.

    Args:
        predictor: of one or more members.
        blocks: structures with the labels of `properties`.
        properties: what to compare.
        where: where the structures come from, for messages.
        check: refuse predictions that are not finite.

    Returns:
        The errors on the structures that have one of the labels.

    Raises:
        LabelError: no structure has one.
    """
    parts, labels = [], []
    for whole in blocks:
        block = whole.take(_labelled_rows(whole, properties))
        for batch, part in predictor.predict_batches(block, properties, where=where, check=check):
            parts.append(part)
            labels.append(batch.labels)
    if not parts:
        names = ", ".join(properties) or "what the model predicts"
        raise LabelError(f"{where}: no structure has a label of {names}; nothing to compare with")
    result = join(parts)
    return _compare(
        result, {name: np.concatenate([part[name] for part in labels]) for name in properties}
    )


def accuracy(name: str, errors: Floats) -> dict[str, Any]:
    """Return root mean square and mean absolute error over the labelled components.

    Args:
        name: a property, or `energy_per_atom`.
        errors: any shape; NaN where there is no label.

    Returns:
        `rmse` and `mae` in `unit`, and the `count` of components; an empty dictionary without any.
    """
    found = errors[~np.isnan(errors)]
    if not len(found):
        return {}
    return {
        "rmse": float(np.sqrt(np.square(found).mean())),
        "mae": float(np.abs(found).mean()),
        "unit": unit_of(name),
        "count": len(found),
    }


def unit_of(name: str) -> str:
    """Return raypot's unit of a property, or of `energy_per_atom`."""
    return "eV/atom" if name == PER_ATOM else PROPERTIES[name].unit


def labelled_properties(block: Block, properties: Iterable[str]) -> tuple[str, ...]:
    """Return those of `properties` that have a label in `block`."""
    return tuple(
        name
        for name in properties
        if name in block.labels and not np.isnan(block.labels[name]).all()
    )


def _labelled_rows(block: Block, properties: Sequence[str]) -> Integers:
    """Return the structures of a block with at least one label."""
    found = np.zeros(len(block), dtype=bool)
    structure_of_atom = np.repeat(np.arange(len(block)), block.n_atoms)
    for name in properties:
        values = block.labels[name]
        rows = ~np.isnan(values).all(axis=tuple(range(1, values.ndim)))
        if PROPERTIES[name].level == "atom":
            rows = np.bincount(structure_of_atom[rows], minlength=len(block)) > 0
        found |= rows
    return np.flatnonzero(found)


def _compare(result: Prediction, labels: Mapping[str, Floats]) -> Errors:
    n_atoms = np.diff(result.offsets).astype(np.float64)
    members = result.members or {}
    ensemble = {name: result.values[name] - label for name, label in labels.items()}
    spreads = {
        name: result.spreads.get(name, np.zeros_like(value)) for name, value in ensemble.items()
    }
    stds = {name: std for name, std in result.stds.items() if name != "energy"}
    of_members = {name: members[name] - label for name, label in labels.items()}
    if "energy" in labels:
        for table in (ensemble, spreads, of_members):
            table[PER_ATOM] = table["energy"] / n_atoms
        if "energy" in result.stds:
            stds[PER_ATOM] = result.stds["energy"] / n_atoms
    return Errors(result.offsets, ensemble, spreads, stds, of_members)
