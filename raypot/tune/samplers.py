"""The samplers of Optuna by the names that a space file uses."""

import warnings
from collections.abc import Callable

import optuna

from raypot.config import fingerprint


def tpe(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimator over all parameters of a branch at once.

    Running trials count as bad ones (constant liar), so that concurrent trials differ.
    **Source** Bergstra et al., NIPS 2011; multivariate form: Falkner et al., ICML 2018.

    Args:
        seed: of the random numbers.
        n_startup: trials drawn at random before the estimator is used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=n_startup,
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )


def random(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:  # noqa: ARG001
    """Independent random draws."""
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    "tpe": tpe,
    "random": random,
}


def draw_seed(seed: int, n_distinct: int, n_tries: int) -> int:
    """Return the seed of one proposal.

    It depends on how far the study is and not on how often its driver was started, so that a
    continued study proposes what an undisturbed one would have proposed.

    Args:
        seed: of the study.
        n_distinct: configurations that the study holds already.
        n_tries: proposals before this one that turned out to be duplicates.
    """
    return int(fingerprint([seed, n_distinct, n_tries])[:8], 16)
