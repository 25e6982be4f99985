"""Which members make the ensemble, and with which weights.

A selector is a pure function from the products of the members' errors to weights that are
constant, not negative and sum to one; the forces of the ensemble are therefore the gradient of
its energy.

**Shapes** M members, A members allowed.

**Source** Caruana et al., ICML 2004 and ICDM 2006 (greedy selection with replacement, bagging).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raypot.ensemble.products import SCORED, ErrorProducts
from raypot.structures import Booleans, Floats, Integers

N_STEPS = 25  # more steps change the weights by less than the noise of the validation set
N_BAGS = 10
TIE = 1e-9  # relative difference of two scores that counts as none

Selector = Callable[[ErrorProducts, int], Floats]


def best(products: ErrorProducts, n_members: int = 1) -> Floats:
    """Give all weight to the member with the lowest score (M,)."""
    return top(products, min(n_members, 1))


def top(products: ErrorProducts, n_members: int = 5) -> Floats:
    """Give equal weights to the `n_members` members with the lowest scores (M,)."""
    order = np.argsort(products.singles(), kind="stable")
    weights = np.zeros(products.n_members)
    weights[order[:n_members]] = 1.0 / min(n_members, products.n_members)
    return weights


def greedy(
    products: ErrorProducts,
    n_members: int = 5,
    *,
    n_steps: int = N_STEPS,
    n_bags: int = N_BAGS,
    seed: int = 0,
) -> Floats:
    """Select with replacement, again and again the member that lowers the score most.

    Each bag sees a random half of the structures and starts from its best member; the weights are
    the mean over bags. Where the bags together name more than `n_members`, the heaviest are
    elected and the bags run again among them. The answer is never worse on all structures than
    the best single member, which is returned otherwise.

    Args:
        products: of all candidates.
        n_members: most distinct members.
        n_steps: members drawn in each bag, repetitions included.
        n_bags: number of half-splits.
        seed: of the half-splits.

    Returns:
        Weights (M,).
    """
    bags = [products.over(half) for half in _half_splits(products.n_structures, n_bags, seed)]
    allowed = np.ones(products.n_members, dtype=bool)
    weights = _mean_over_bags(bags, allowed, n_members, n_steps)
    if np.count_nonzero(weights) > n_members:
        allowed[np.argsort(-weights, kind="stable")[n_members:]] = False
        weights = _mean_over_bags(bags, allowed, n_members, n_steps)
    alternatives = np.stack([best(products), weights])
    return np.asarray(alternatives[np.argmin(products.score(alternatives))])


SELECTORS: dict[str, Selector] = {"greedy": greedy, "top": top, "best": best}


def alternatives(products: ErrorProducts, weights: Floats, n_members: int = 5) -> dict[str, Floats]:
    """Return the chosen weights (M,) beside the plain alternatives that they must beat.

    Args:
        products: of all candidates.
        weights: the chosen ones (M,).
        n_members: how many members the uniform ensemble has.
    """
    return {"best_single": best(products), "uniform": top(products, n_members), "ensemble": weights}


def agreement(errors: Mapping[str, Floats], offsets: Integers, weights: Floats) -> dict[str, Any]:
    """Say how much the members err together, and what averaging gains.

    Args:
        errors: metric to the errors of the members (M, S, ...) or (M, N, ...).
        offsets: first atom of each structure, and the end (S + 1,).
        weights: (M,).

    Returns:
        `rho`, the mean correlation of two members' errors (of forces where they are labelled, else
        of energies), and `gain`, RMSE of the ensemble over that of a mean member, `measured` and
        as rho `predicted` it. Nothing for a single member.
    """
    name = next((name for name in reversed(SCORED) if name in errors), None)
    if name is None:
        return {}
    inside = (weights > 0) & ~np.isnan(errors[name].reshape(len(weights), -1)).all(axis=1)
    if np.count_nonzero(inside) < 2:
        return {}
    share = weights[inside] / weights[inside].sum()
    products = ErrorProducts.of({name: errors[name][inside]}, offsets, {name: 1.0})
    rho = products.correlation(name, share)
    mean_member = float(np.sqrt(np.square(products.rmse(name, np.eye(len(share)))) @ share))
    if mean_member == 0.0:
        return {}
    measured = float(products.rmse(name, share[None])[0]) / mean_member
    gain = {"measured": measured, "predicted": predicted_gain(rho, effective_members(share))}
    return {"rho": rho, "gain": gain}


def predicted_gain(rho: float, n_members: float) -> float:
    """Return RMSE(ensemble) / RMSE(member) = sqrt((1 + (M - 1) rho) / M).

    It holds for equal weights and members of equal error whose errors correlate by rho.

    Args:
        rho: correlation of the errors of two members.
        n_members: M, or the effective number 1 / sum(w^2).
    """
    return float(np.sqrt(max(1.0 + (n_members - 1.0) * rho, 0.0) / n_members))


def effective_members(weights: Floats) -> float:
    """Return the number of equal members that average as well: 1 / sum(w^2)."""
    return float(1.0 / np.square(weights).sum())


def _half_splits(n_structures: int, n_bags: int, seed: int) -> list[Integers]:
    generator = np.random.default_rng(seed)
    half = (n_structures + 1) // 2
    return [generator.permutation(n_structures)[:half] for _ in range(n_bags)]


def _mean_over_bags(
    bags: list[ErrorProducts], allowed: Booleans, n_members: int, n_steps: int
) -> Floats:
    members = np.flatnonzero(allowed)
    weights = np.zeros(len(allowed))
    for bag in bags:
        weights[members] += _greedy_bag(bag, members, n_members, n_steps)
    return np.asarray(weights / weights.sum())


def _greedy_bag(bag: ErrorProducts, members: Integers, n_members: int, n_steps: int) -> Floats:
    """Return the best weights met on the way from one member to `n_steps` draws (A,)."""
    draws = np.eye(bag.n_members)[members]  # (A, M)
    counts = np.zeros(len(members))
    path, scores = [], []
    for step in range(1, n_steps + 1):
        score = bag.score((counts @ draws + draws) / step)  # (A,)
        inside = counts > 0
        if np.count_nonzero(inside) >= n_members:
            score = np.where(inside, score, np.inf)
        tied = score <= score.min() * (1 + TIE)
        chosen = np.argmax(tied & inside) if (tied & inside).any() else np.argmax(tied)
        counts[chosen] += 1
        path.append(counts / step)
        scores.append(score[chosen])
    return np.asarray(path[int(np.argmin(scores))])
