"""Selection of members: exact algebra, oracles of error correlation, and rules of the answer."""

import numpy as np
import pytest

from raypot.ensemble.products import ErrorProducts
from raypot.ensemble.select import (
    SELECTORS,
    agreement,
    alternatives,
    best,
    effective_members,
    greedy,
    predicted_gain,
    top,
)
from raypot.errors import LabelError

SPREAD = {"energy_per_atom": 0.02, "forces": 0.8}


def members_errors(rng, n_members=6, n_structures=40, rho=0.6, sizes=None):
    """Errors whose pairwise correlation is rho; member m is `sizes[m]` times as wrong."""
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 9, n_structures))])
    sizes = np.ones(n_members) if sizes is None else np.asarray(sizes)

    def draw(*shape):
        shared = np.sqrt(rho) * rng.standard_normal(shape)
        own = np.sqrt(1 - rho) * rng.standard_normal((n_members, *shape))
        return (shared + own) * sizes.reshape(-1, *[1] * len(shape))

    errors = {
        "energy_per_atom": 0.01 * draw(n_structures),
        "forces": 0.1 * draw(offsets[-1], 3),
    }
    return errors, offsets


def products_of(*args, **kwargs):
    errors, offsets = members_errors(*args, **kwargs)
    return ErrorProducts.of(errors, offsets, SPREAD)


def test_products_give_the_error_of_a_weighted_mean(rng):
    errors, offsets = members_errors(rng)
    errors["forces"][:, 5:9, 1] = np.nan
    products = ErrorProducts.of(errors, offsets, SPREAD)
    weights = rng.dirichlet(np.ones(6), size=3)
    for name, values in errors.items():
        mean = np.tensordot(weights, values, 1)
        direct = np.sqrt(np.nanmean(np.square(mean.reshape(3, -1)), axis=1))
        assert products.rmse(name, weights) == pytest.approx(direct, rel=1e-12)
    ratios = [products.rmse(name, weights) / SPREAD[name] for name in errors]
    assert products.score(weights) == pytest.approx(np.sqrt(ratios[0] * ratios[1]), rel=1e-12)


def test_a_bag_is_the_sum_over_its_structures(rng):
    errors, offsets = members_errors(rng)
    products = ErrorProducts.of(errors, offsets, SPREAD)
    bag = np.array([3, 0, 17])
    atoms = np.concatenate([np.arange(offsets[s], offsets[s + 1]) for s in bag])
    weights = np.full((1, 6), 1 / 6)
    direct = np.sqrt(np.square(errors["forces"].mean(0)[atoms]).mean())
    assert products.over(bag).rmse("forces", weights)[0] == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize(
    ("rho", "n_members", "gain"),
    [
        (0.4, 2, 0.837), (0.4, 5, 0.721), (0.6, 3, 0.856), (0.7, 4, 0.880),
        (0.8, 8, 0.908), (0.9, 2, 0.975), (0.9, 8, 0.955), (0.6, 1e9, 0.775),
    ],
)  # fmt: skip
def test_predicted_gain_agrees_with_the_table(rho, n_members, gain):
    assert predicted_gain(rho, n_members) == pytest.approx(gain, abs=6e-4)


@pytest.mark.parametrize("rho", [0.4, 0.8])
def test_measured_gain_agrees_with_the_prediction(rng, rho):
    products = products_of(rng, n_members=5, n_structures=2000, rho=rho)
    uniform = np.full(5, 0.2)
    single = products.rmse("forces", np.eye(5)).mean()
    assert products.correlation("forces", uniform) == pytest.approx(rho, abs=0.02)
    measured = products.rmse("forces", uniform[None])[0] / single
    assert measured == pytest.approx(predicted_gain(rho, 5), abs=0.01)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("n_members", [1, 3, 20])
def test_weights_are_a_convex_combination_of_few_members(rng, name, n_members):
    weights = SELECTORS[name](products_of(rng, n_members=8), n_members)
    assert weights.shape == (8,)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert 1 <= np.count_nonzero(weights) <= n_members


def test_greedy_finds_the_complementary_pair(rng):
    """Two members whose errors cancel beat a third that is better alone."""
    noise = 0.1 * rng.standard_normal((200, 3))
    forces = np.stack([0.9 * rng.standard_normal((200, 3)) * 0.1, noise, -noise])
    products = ErrorProducts.of({"forces": forces}, np.arange(0, 201, 5), {"forces": 1.0})
    assert best(products).tolist() == [1, 0, 0]
    weights = greedy(products, 3)
    assert weights[1] == pytest.approx(weights[2], abs=0.1)
    assert products.score(weights[None])[0] < 0.2 * products.singles().min()


def test_greedy_weighs_better_members_more(rng):
    weights = greedy(products_of(rng, rho=0.0, sizes=[1, 1, 2, 2, 4, 4], n_structures=300), 6)
    assert weights[:2].min() > weights[2:4].max() > weights[4:].max()


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("n_structures", [1, 2, 7, 40])
def test_greedy_is_never_worse_than_the_best_single(rng, rho, n_structures):
    for _ in range(5):
        sizes = rng.uniform(0.5, 3, 10)
        products = products_of(rng, n_members=10, n_structures=n_structures, rho=rho, sizes=sizes)
        chosen = products.score(greedy(products, 4)[None])[0]
        assert chosen <= products.singles().min() * (1 + 1e-12)


def test_greedy_falls_back_to_the_best_single_of_all_structures(rng):
    """Bags that see halves may prefer the other member; all structures together decide."""
    forces = np.zeros((2, 4, 3))
    forces[0], forces[1, 0], forces[1, 1:] = 0.1, 1.0, 0.01
    products = ErrorProducts.of({"forces": forces}, np.arange(5), {"forces": 1.0})
    weights = greedy(products, 1)
    assert products.score(weights[None])[0] == pytest.approx(products.singles().min())
    assert weights.tolist() == [1, 0]


def test_ties_prefer_members_already_in(rng):
    """A copy of the best member adds cost and nothing else."""
    errors, offsets = members_errors(rng, n_members=3, sizes=[1, 3, 1])
    copies = {name: values[[0, 1, 0]] for name, values in errors.items()}
    weights = greedy(ErrorProducts.of(copies, offsets, SPREAD), 3)
    assert weights[0] > 0
    assert weights[2] == 0


def test_a_perfect_member_takes_all_weight(rng):
    errors, offsets = members_errors(rng, sizes=[1, 1, 0, 1, 1, 1])
    products = ErrorProducts.of(errors, offsets, SPREAD)
    assert greedy(products, 5).tolist() == [0, 0, 1, 0, 0, 0]


def test_energies_alone_can_be_scored(rng):
    errors, offsets = members_errors(rng)
    errors["forces"] = np.full_like(errors["forces"], np.nan)
    products = ErrorProducts.of(errors, offsets, SPREAD)
    assert list(products.products) == ["energy_per_atom"]
    assert greedy(products, 5).sum() == pytest.approx(1.0)


def test_a_bag_without_labels_of_a_property_uses_the_others(rng):
    errors, offsets = members_errors(rng, n_structures=2)
    errors["energy_per_atom"][:, 1] = np.nan
    products = ErrorProducts.of(errors, offsets, SPREAD)
    assert np.isfinite(products.over(np.array([1])).score(np.eye(6))).all()
    assert np.isfinite(greedy(products, 5)).all()


def test_missing_labels_and_broken_members_are_named(rng):
    errors, offsets = members_errors(rng)
    with pytest.raises(LabelError, match="none of energy_per_atom, forces has labels"):
        ErrorProducts.of({k: v * np.nan for k, v in errors.items()}, offsets, SPREAD)
    errors["forces"][4, 7] = np.nan
    with pytest.raises(LabelError, match=r"candidates \[4\] predict NaN"):
        ErrorProducts.of(errors, offsets, SPREAD)


def test_the_choice_stands_beside_the_plain_alternatives(rng):
    products = products_of(rng, sizes=[1, 1, 1, 2, 2, 9])
    choices = alternatives(products, greedy(products, 4), 4)
    assert list(choices) == ["best_single", "uniform", "ensemble"]
    scores = {name: products.score(weights[None])[0] for name, weights in choices.items()}
    assert scores["ensemble"] < scores["best_single"] == products.singles().min()
    assert choices["uniform"].tolist() == top(products, 4).tolist()


def test_agreement_gives_rho_and_the_gain(rng):
    errors, offsets = members_errors(rng, n_members=4, n_structures=2000, rho=0.7)
    found = agreement(errors, offsets, np.full(4, 0.25))
    assert found["rho"] == pytest.approx(0.7, abs=0.02)
    assert found["gain"]["predicted"] == pytest.approx(0.880, abs=0.01)
    assert found["gain"]["measured"] == pytest.approx(found["gain"]["predicted"], abs=0.005)
    assert agreement(errors, offsets, np.eye(4)[1]) == {}
    errors["forces"][3] = np.nan
    assert agreement(errors, offsets, np.full(4, 0.25))["rho"] == pytest.approx(0.7, abs=0.02)


def test_effective_members_counts_equal_weights():
    assert effective_members(np.full(4, 0.25)) == pytest.approx(4)
    assert effective_members(np.array([1.0, 0.0])) == pytest.approx(1)


def test_one_member_has_no_correlation(rng):
    assert np.isnan(products_of(rng).correlation("forces", np.eye(6)[0]))
