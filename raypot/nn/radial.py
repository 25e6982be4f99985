"""Edges as models see them: distances, radial functions and the envelope that ends them.

**Shapes** N atoms, S structures, E edges, K radial functions.
**Source** Gaussians: SchNet, J. Chem. Phys. 148, 241722 (2018). Bessel functions and the polynomial
envelope: DimeNet, arXiv:2003.03123, eq. 7 and 8. Cosine envelope: Behler, J. Chem. Phys. 134,
074106 (2011).
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from raypot.batch import Batch
from raypot.config import lookup

# Å². Keeps directions and their derivatives finite for two atoms in one place; below the rounding
# of float64 for every distance above 0.01 Å.
_TINY_SQUARE = 1e-20


class Edges(NamedTuple):
    """The neighbors of every atom, described for a model."""

    source: Tensor  # (E,)
    target: Tensor  # (E,); the center
    distance: Tensor  # (E,) Å
    direction: Tensor  # unit vectors from target to source (E, 3)
    radial: Tensor  # (E, K)
    envelope: Tensor  # (E,); 1 at distance 0, 0 from the cutoff on


def cosine_envelope(distance: Tensor, cutoff: float) -> Tensor:
    """Return (cos(π d / cutoff) + 1) / 2 below the cutoff, else 0.

    Value and slope are continuous at the cutoff.

    Args:
        distance: (E,) in Å.
        cutoff: in Å.
    """
    return 0.5 * (torch.cos(math.pi * (distance / cutoff).clamp(max=1.0)) + 1.0)


def polynomial_envelope(distance: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Return 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = d / cutoff, else 0.

    Value, slope and curvature are continuous at the cutoff.

    Args:
        distance: (E,) in Å.
        cutoff: in Å.
        power: p; the larger, the later the envelope falls.
    """
    x = (distance / cutoff).clamp(max=1.0)
    first = (power + 1.0) * (power + 2.0) / 2.0
    second = power * (power + 2.0)
    third = power * (power + 1.0) / 2.0
    return 1.0 - x**power * (first - x * (second - x * third))


class GaussianBasis(nn.Module):
    """Gaussians at even spacing, each as wide as the spacing.

    g_k(d) = exp(-(d - c_k)² / (2 Δ²)), with centers c_k from `start` to the cutoff and Δ between
    two of them.

    Args:
        n_radial: number K of functions, at least 2.
        cutoff: the last center, in Å.
        start: the first center, in Å.
    """

    centers: Tensor

    def __init__(self, n_radial: int, cutoff: float, start: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(start, cutoff, n_radial))
        self.width = (cutoff - start) / (n_radial - 1)

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances (E,) in Å to (E, K)."""
        scaled = (distance[:, None] - self.centers) / self.width  # (E, K)
        return torch.exp(-0.5 * scaled.square())


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order zero that vanish at the cutoff.

    b_k(d) = sqrt(2 / cutoff) sin(k π d / cutoff) / d, for k = 1 ... K.

    Args:
        n_radial: number K of functions.
        cutoff: in Å.
    """

    frequencies: Tensor

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        numbers = torch.arange(1, n_radial + 1, dtype=torch.get_default_dtype())
        self.register_buffer("frequencies", numbers * (math.pi / cutoff))
        self.norm = math.sqrt(2.0 / cutoff)

    def forward(self, distance: Tensor) -> Tensor:
        """Map distances (E,) in Å to (E, K)."""
        r = distance[:, None]
        return self.norm * torch.sin(r * self.frequencies) / r


RADIAL_BASES: dict[str, type[GaussianBasis] | type[BesselBasis]] = {
    "gaussian": GaussianBasis,
    "bessel": BesselBasis,
}
CUTOFFS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "cosine": cosine_envelope,
    "polynomial": polynomial_envelope,
}


def _named_in(table: Mapping[str, object], what: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        lookup(name, table, what)
        return name

    return check


RadialName = Annotated[
    str,
    AfterValidator(_named_in(RADIAL_BASES, "radial basis")),
    Field(json_schema_extra={"enum": list(RADIAL_BASES)}),
]
EnvelopeName = Annotated[
    str,
    AfterValidator(_named_in(CUTOFFS, "envelope")),
    Field(json_schema_extra={"enum": list(CUTOFFS)}),
]


def edge_vectors(batch: Batch) -> Tensor:
    """Return the vectors from target to source, periodic images included, (E, 3) in Å."""
    cell = batch.cell.index_select(0, batch.structure.index_select(0, batch.target))  # (E, 3, 3)
    image = (batch.shift[:, :, None] * cell).sum(1)  # (E, 3)
    source = batch.positions.index_select(0, batch.source)
    return source - batch.positions.index_select(0, batch.target) + image


class EdgeDescription(nn.Module):
    """Describe every edge of a batch by direction, radial functions and envelope.

    Args:
        n_radial: number K of radial functions.
        cutoff: in Å; longer edges may occur and count for nothing.
        radial: a name of `RADIAL_BASES`.
        envelope: a name of `CUTOFFS`.
    """

    def __init__(self, n_radial: int, cutoff: float, radial: str, envelope: str) -> None:
        super().__init__()
        self.basis = RADIAL_BASES[radial](n_radial, cutoff)
        self.envelope = CUTOFFS[envelope]
        self.cutoff = cutoff

    def forward(self, batch: Batch) -> Edges:
        """Compute the description from positions and cells."""
        vectors = edge_vectors(batch)  # (E, 3)
        distance = (vectors.square().sum(-1) + _TINY_SQUARE).sqrt()  # (E,)
        return Edges(
            source=batch.source,
            target=batch.target,
            distance=distance,
            direction=vectors / distance[:, None],
            radial=self.basis(distance),
            envelope=self.envelope(distance, self.cutoff),
        )
