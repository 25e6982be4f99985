"""Loss terms: one per property, each a sum over labels and its count, never divided.

A term adds up `error(predicted - reference)` over everything that has a label, in the way its
`norm` says. The division by the count happens once, after the sums over micro-batches and ranks:
gradients then do not depend on how structures fell on them.

The weight of a structure multiplies its errors and not the count. A structure of weight 0.5 thus
counts half, whatever else is in its batch.

| norm | total | count |
| --- | --- | --- |
| `per_component` | sum_k error(d_k) over labelled components k | components |
| `per_atom` | sum_k error(d_k) / n_atoms | components |
| `per_atom_squared` | sum_k error(d_k / n_atoms) | components |
| `per_structure` | sum_s mean_k error(d_sk) over the labelled components of s | structures |

`per_atom` and `per_atom_squared` are for properties of whole structures. For the energy they are
(dE)²/N and (dE/N)². With `per_component` a large structure weighs more in the forces than a small
one; with `per_structure` all weigh the same.

**Shapes** N atoms, S structures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from raypot.batch import Batch, segment_sum
from raypot.config import Config, lookup
from raypot.errors import LabelError, ShapeMismatch
from raypot.losses.schedules import Weight
from raypot.properties import PROPERTIES

Norm = Literal["per_component", "per_atom", "per_atom_squared", "per_structure"]
HUBER_DELTA = 0.01  # in the unit of the property


class Partial(NamedTuple):
    """A sum over labels and the number of things summed; means come later."""

    total: Tensor  # ()
    count: Tensor  # type: ignore[assignment]  # ()


class TermConfig(Config):
    """How much a property counts in the loss, and how its errors are added up."""

    weight: Weight = Field(default=1.0, description="a number, or a schedule {start, end, by}")
    norm: Norm | None = Field(
        default=None, description="what one error is divided by; default that of the property"
    )
    error: Literal["mse", "mae", "huber"] = Field(
        default="mse", description="square, absolute value, or square below `delta`"
    )
    delta: float | None = Field(
        default=None,
        gt=0,
        description=f"where huber turns linear, in the property's unit; default {HUBER_DELTA}",
    )

    @model_validator(mode="after")
    def _delta_is_used(self) -> "TermConfig":
        if self.delta is not None and self.error != "huber":
            raise ValueError(f"delta belongs to error huber, not to {self.error!r}; remove it")
        return self


@dataclass(frozen=True)
class Term:
    """The error of one property.

    Args:
        name: row of the property table.
        norm: the norm taken when a run file names none.
    """

    name: str
    norm: Norm

    def __call__(self, predicted: Tensor, batch: Batch, config: TermConfig) -> Partial:
        """Return total and count of the errors of `predicted`; see `total` and `count`."""
        return Partial(self.total(predicted, batch, config), self.count(batch, config))

    def total(self, predicted: Tensor, batch: Batch, config: TermConfig) -> Tensor:
        """Add up the errors of `predicted`.

        Args:
            predicted: (N, ...) or (S, ...) as the property table says, in its unit.
            batch: holds the labels; NaN where there is none.
            config: norm and error.

        Returns:
            () in the unit of the error.

        Raises:
            ShapeMismatch: prediction and label differ in shape.
            LabelError: the batch does not carry the label.
        """
        norm = config.norm or self.norm
        difference = masked_difference(self.name, predicted, batch)
        errors = self._errors(difference, batch, norm, config)  # (N or S, ...)
        rows = errors.flatten(1).sum(1) if errors.dim() > 1 else errors
        per_structure = rows if self.is_of_structure else segment_sum(rows, *_home(batch))
        if norm == "per_structure":
            per_structure = per_structure / self._n_components(batch).clamp(min=1)
        return (per_structure * batch.weight).sum()

    def count(self, batch: Batch, config: TermConfig) -> Tensor:
        """Count what the sum runs over, from the labels alone: () float64."""
        if (config.norm or self.norm) == "per_structure":
            return (self._n_components(batch) > 0).sum().double()
        return labelled(self.name, batch).sum().double()

    @property
    def is_of_structure(self) -> bool:
        """Whether one value belongs to a structure and not to an atom."""
        return PROPERTIES[self.name].level == "structure"

    def _errors(self, difference: Tensor, batch: Batch, norm: Norm, config: TermConfig) -> Tensor:
        if norm not in ("per_atom", "per_atom_squared"):
            return _error(difference, config)
        n_atoms = batch.n_atoms.view(-1, *[1] * (difference.dim() - 1))
        if norm == "per_atom_squared":
            return _error(difference / n_atoms, config)
        return _error(difference, config) / n_atoms

    def _n_components(self, batch: Batch) -> Tensor:
        """Count the labelled components of each structure (S,)."""
        rows = labelled(self.name, batch).to(batch.weight.dtype)
        rows = rows.flatten(1).sum(1) if rows.dim() > 1 else rows
        return rows if self.is_of_structure else segment_sum(rows, *_home(batch))


def _home(batch: Batch) -> tuple[Tensor, int]:
    return batch.structure, batch.n_atoms.shape[0]


def _error(difference: Tensor, config: TermConfig) -> Tensor:
    """Return the error of each component, in the shape of `difference`."""
    if config.error == "mse":
        return difference.square()
    if config.error == "mae":
        return difference.abs()
    delta = config.delta or HUBER_DELTA
    size = difference.abs()
    return torch.where(size < delta, 0.5 * size.square(), delta * (size - 0.5 * delta))


def label(name: str, batch: Batch) -> Tensor:
    """Return the labels of a property, NaN where missing.

    Raises:
        LabelError: the batch was made without them.
    """
    if name not in batch.labels:
        carried = ", ".join(batch.labels) or "none"
        raise LabelError(
            f"loss.{name}: the batch carries no such label (it has {carried}); "
            f"ask the loader for `{name}` or remove the term",
            name=name,
        )
    return batch.labels[name]


def labelled(name: str, batch: Batch) -> Tensor:
    """Return which components of a property have a label: booleans in the label's shape.

    The stress exists only where a structure repeats in three directions.
    """
    present = ~label(name, batch).isnan()
    return present & batch.pbc.all(-1)[:, None, None] if name == "stress" else present


def masked_difference(name: str, predicted: Tensor, batch: Batch) -> Tensor:
    """Return predicted minus reference, zero where there is no label.

    Both sides are masked before the subtraction, so that neither a missing label nor a
    prediction without one reaches a gradient.

    Raises:
        ShapeMismatch: the shapes differ.
    """
    reference = label(name, batch)
    if predicted.shape != reference.shape:
        raise ShapeMismatch(
            f"{name}: predicted {tuple(predicted.shape)} but labelled {tuple(reference.shape)}; "
            f"check `{name}` in the dataset card",
            name=name,
        )
    present = labelled(name, batch)
    zero = reference.new_zeros(())
    return torch.where(present, predicted, zero) - torch.where(present, reference, zero)


TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        Term("energy", "per_atom_squared"),
        Term("forces", "per_component"),
        Term("stress", "per_component"),
        Term("charges", "per_component"),
        Term("dipole", "per_component"),
    )
}


def check_term(name: str, config: TermConfig) -> None:
    """Check that a term exists and that its norm fits the property.

    Raises:
        ValueError: saying what is known or fits.
    """
    term = lookup(name, TERMS, "loss term")
    if not term.is_of_structure and config.norm in ("per_atom", "per_atom_squared"):
        raise ValueError(
            f"{name}: norm {config.norm!r} is for properties of whole structures; "
            "use 'per_component' or 'per_structure'"
        )


def _names_known(value: Any) -> Any:
    for name in value if isinstance(value, Mapping) else ():
        lookup(str(name), TERMS, "loss term")
    return value


def _all_fit(terms: dict[str, TermConfig]) -> dict[str, TermConfig]:
    for name, config in terms.items():
        check_term(name, config)
    if not any(config.weight != 0 for config in terms.values()):
        raise ValueError("no term has a weight; give at least one a weight above 0")
    return terms


LossConfig = Annotated[
    dict[str, TermConfig], BeforeValidator(_names_known), AfterValidator(_all_fit)
]
