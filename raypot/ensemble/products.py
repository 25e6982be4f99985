"""Inner products of the members' errors: all that selecting members needs.

The error of a weighted mean is quadratic in the weights. The products are kept for each
structure, so that a bag of structures is a sum of small matrices, however many force components
there are.

    sum of squared errors of the mean = w^T G w,    G_ij = sum_k e_ik e_jk

**Shapes** M members, S structures, N atoms, K sets of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raypot.errors import LabelError
from raypot.structures import Floats, Integers

SCORED = ("energy_per_atom", "forces")  # what the score is made of, where they have labels


@dataclass(frozen=True)
class ErrorProducts:
    """Inner products of the members' errors, structure by structure.

    Args:
        products: property to (S, M, M), in the unit squared.
        counts: property to the labelled components of each structure (S,).
        spread: property to the spread of its labels, which makes errors comparable.
    """

    products: Mapping[str, Floats]
    counts: Mapping[str, Integers]
    spread: Mapping[str, float]

    @classmethod
    def of(
        cls, errors: Mapping[str, Floats], offsets: Integers, spread: Mapping[str, float]
    ) -> "ErrorProducts":
        """Multiply the errors of every pair of members.

        Args:
            errors: property to (M, S, ...) or (M, N, ...); NaN where there is no label.
            offsets: first atom of each structure, and the end (S + 1,).
            spread: property to the spread of its labels.

        Raises:
            LabelError: no property has both labels and a spread.
        """
        products, counts = {}, {}
        for name in _scored(errors, spread):
            products[name], counts[name] = _inner_products(errors[name], offsets)
        return cls(products, counts, {name: spread[name] for name in products})

    @property
    def n_members(self) -> int:
        """The number M of candidates."""
        return int(next(iter(self.products.values())).shape[1])

    @property
    def n_structures(self) -> int:
        """The number S of structures."""
        return len(next(iter(self.products.values())))

    def over(self, structures: Integers) -> "ErrorProducts":
        """Return the sums over some structures, as the products of one large structure."""
        products = {name: x[structures].sum(0, keepdims=True) for name, x in self.products.items()}
        counts = {name: x[structures].sum(keepdims=True) for name, x in self.counts.items()}
        return ErrorProducts(products, counts, self.spread)

    def rmse(self, name: str, weights: Floats) -> Floats:
        """Return the root mean square error of weighted means (K,), in the unit of the property.

        Args:
            name: the property.
            weights: (K, M).

        Returns:
            NaN where no structure has a label.
        """
        count = self.counts[name].sum()
        if count == 0:
            return np.full(len(weights), np.nan)
        squares = np.einsum("ki,ij,kj->k", weights, self.products[name].sum(0), weights)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0) / count))

    def score(self, weights: Floats) -> Floats:
        """Return the geometric mean over the labelled properties of RMSE over spread (K,).

        Args:
            weights: (K, M).
        """
        ratios = np.array([self.rmse(name, weights) / self.spread[name] for name in self.products])
        with np.errstate(divide="ignore"):
            logs = np.log(ratios[~np.isnan(ratios).any(axis=1)])
        return np.asarray(np.exp(logs.mean(axis=0))) if len(logs) else np.ones(len(weights))

    def singles(self) -> Floats:
        """Return the score of every member alone (M,)."""
        return self.score(np.eye(self.n_members))

    def correlation(self, name: str, weights: Floats) -> float:
        """Return rho, the mean correlation between the errors of the members in use.

        rho = mean over pairs i < j of G_ij / sqrt(G_ii G_jj). Close to one, more members of this
        kind do not help; more different ones may. NaN for a single member.

        Args:
            name: the property.
            weights: members with weight zero do not count (M,).
        """
        inside = np.flatnonzero(weights)
        total = self.products[name].sum(0)[np.ix_(inside, inside)]
        norm = np.sqrt(np.diag(total))
        pairs = np.triu_indices(len(inside), 1)
        products = np.outer(norm, norm)[pairs]
        return float((total[pairs] / products).mean()) if len(inside) > 1 and norm.all() else np.nan


def _scored(errors: Mapping[str, Floats], spread: Mapping[str, float]) -> list[str]:
    """Name the properties of the score: energy and forces, or what there is without them."""
    usable = [
        name
        for name, values in errors.items()
        if spread.get(name, 0.0) > 0 and not np.isnan(values).all()
    ]
    if not usable:
        raise LabelError(
            f"selection: none of {', '.join(errors) or 'no property'} has labels and a spread; "
            "the validation rows need energies or forces"
        )
    return [name for name in usable if name in SCORED] or usable


def _inner_products(errors: Floats, offsets: Integers) -> tuple[Floats, Integers]:
    """Return the products (S, M, M) and the labelled components (S,) of each structure."""
    n_members, n_structures = len(errors), len(offsets) - 1
    n_rows = errors.shape[1]
    flat = errors.reshape(n_members, n_rows, -1)
    missing = np.isnan(flat)
    labelled = np.asarray(~missing.all(axis=0))  # (rows, components)
    broken = np.flatnonzero((missing & labelled).any(axis=(1, 2)))
    if len(broken):
        raise LabelError(f"selection: candidates {broken.tolist()} predict NaN; leave them out")
    flat = np.where(labelled, flat, 0.0)
    starts = offsets if n_rows == offsets[-1] else np.arange(n_structures + 1)
    products = np.empty((n_structures, n_members, n_members))
    counts = np.empty(n_structures, dtype=np.int64)
    for s in range(n_structures):
        here = slice(starts[s], starts[s + 1])
        rows = flat[:, here].reshape(n_members, -1)
        products[s] = rows @ rows.T
        counts[s] = labelled[here].sum()
    return products, counts
