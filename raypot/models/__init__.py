"""Architectures by name, and how to build one."""

import torch

from raypot.config import Config, did_you_mean
from raypot.errors import ConfigError
from raypot.models.base import AtomisticModel, outputs_for
from raypot.models.painn import PaiNN
from raypot.models.schnet import SchNet

__all__ = ["MODELS", "AtomisticModel", "build_model", "outputs_for"]

MODELS: dict[str, type[AtomisticModel]] = {"painn": PaiNN, "schnet": SchNet}


def build_model(
    name: str,
    settings: Config,
    *,
    elements: tuple[int, ...],
    outputs: tuple[str, ...],
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> AtomisticModel:
    """Build a model whose initial parameters depend on the seed alone.

    Args:
        name: a key of `MODELS`.
        settings: the `Config` of that model.
        elements: atomic numbers that it shall know, ascending.
        outputs: heads to build; `outputs_for` gives those that a set of properties needs.
        scale: eV; multiplies the summed energies of atoms.
        seed: of the initial parameters; the global generator is left as it is.
        dtype: of parameters and floating buffers; parameters are drawn in float32 always.

    Raises:
        ConfigError: an unknown name, settings of another model, bad elements or outputs.
    """
    if name not in MODELS:
        raise ConfigError(f"model {name!r} is unknown{did_you_mean(name, MODELS)}", name=name)
    kind = MODELS[name]
    if not isinstance(settings, kind.Config):
        raise ConfigError(
            f"model {name!r}: settings are a {type(settings).__name__}, expected "
            f"{kind.Config.__name__}",
            name=name,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(settings, elements, outputs, scale)
    return model.to(dtype)
