"""What a model is trained on: labels without self energies, and the scales of the labels.

A total energy is mostly the energy of the separate atoms. That part is fitted on the training rows
alone, subtracted in float64, and saved with the model, which adds it again.

**Shapes** N atoms, S structures, K elements, C distinct compositions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from raypot.config import Config, build, did_you_mean
from raypot.constants import ATOMIC_NUMBERS, MAX_ATOMIC_NUMBER, SYMBOLS
from raypot.errors import CheckpointError, ConfigError, LabelError
from raypot.structures import Block, Floats, Integers

FLOOR = 1e-6  # in the unit of the label; below it a spread is round-off, not a scale


class TargetsConfig(Config):
    """How labels become targets."""

    self_energies: Literal["least_squares", "isolated_atoms", "none"] | dict[str, float] = Field(
        "least_squares",
        description="energy of each element in eV: fitted to the training rows, taken from "
        "isolated atoms, none, or given as { H = -13.6, ... }",
    )
    scale: Literal["force_rms", "energy_std", "none"] = Field(
        "force_rms",
        description="unit of the model's atomic energies: RMS of the force components (1 Å times "
        "that), standard deviation of the energy per atom, or 1 eV",
    )

    @field_validator("self_energies", mode="after")
    @classmethod
    def _known_symbols(cls, value: Any) -> Any:
        for symbol in value if isinstance(value, dict) else ():
            if symbol not in ATOMIC_NUMBERS:
                near = did_you_mean(symbol.capitalize(), ATOMIC_NUMBERS)
                hint = near if "mean" in near else ""
                raise ValueError(f"{symbol!r} is no chemical symbol{hint}")
        return value


class _Written(Config):
    """The JSON form of targets."""

    self_energies: dict[str, float]
    scale: float
    rank: int
    spread: dict[str, float]


@dataclass(frozen=True)
class Targets:
    """The constants between labels and targets, fitted on training rows.

    Args:
        self_energies: atomic number to eV, for every element of the training rows.
        scale: eV; the model multiplies its sum of atomic energies by it. Above zero.
        rank: independent compositions in the fit, at most K; 0 where nothing was fitted.
        spread: typical size of each label over the training rows, above zero: standard deviation
            of `energy_per_atom` after the self energies, RMS of the force components, standard
            deviation of the components of others. Scores are errors over spreads.
    """

    self_energies: dict[int, float]
    scale: float
    rank: int
    spread: dict[str, float]

    def self_energy(self, numbers: Integers, offsets: Integers) -> Floats:
        """Sum the self energies of each structure.

        Args:
            numbers: (N,).
            offsets: first atom of each structure, and the end (S + 1,).

        Returns:
            (S,) in eV, float64.

        Raises:
            LabelError: an element without a self energy.
        """
        table = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
        table[list(self.self_energies)] = list(self.self_energies.values())
        energies = table[numbers]
        if np.isnan(energies).any():
            missing = _symbols(np.unique(numbers[np.isnan(energies)]))
            raise LabelError(
                f"targets: no self energy of {missing}; known are "
                f"{_symbols(self.self_energies)}: have these elements among the training rows or "
                "give their energies in [data.targets.self_energies]",
                missing=missing,
            )
        structure = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        totals = np.bincount(structure, weights=energies, minlength=len(offsets) - 1)
        return totals.astype(np.float64)  # of no structure, bincount counts in integers

    def subtract(self, block: Block) -> Block:
        """Return `block` with the self energies taken out of its energies."""
        if "energy" not in block.labels:
            return block
        left = block.labels["energy"] - self.self_energy(block.numbers, block.offsets)
        return replace(block, labels={**block.labels, "energy": left})

    def to_json(self) -> dict[str, Any]:
        """Return plain values, elements by symbol."""
        energies = {SYMBOLS[z]: energy for z, energy in sorted(self.self_energies.items())}
        return {
            "self_energies": energies,
            "scale": self.scale,
            "rank": self.rank,
            "spread": dict(self.spread),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str = "targets") -> "Targets":
        """Rebuild from plain values.

        Raises:
            CheckpointError: not the targets of a model.
        """
        try:
            written = build(_Written, tree, where)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        if not set(written.self_energies) <= set(ATOMIC_NUMBERS) or written.scale <= 0.0:
            raise CheckpointError(f"{where}: an unknown element or a scale that is not above zero")
        energies = {ATOMIC_NUMBERS[s]: energy for s, energy in written.self_energies.items()}
        return cls(energies, written.scale, written.rank, written.spread)


def fit_targets(training: Block, config: TargetsConfig, isolated: Block | None = None) -> Targets:
    """Fit the constants on training rows.

    Args:
        training: the training rows with the labels that the run uses.
        config: what to fit.
        isolated: isolated atoms with their energies, where the store has some.

    Raises:
        LabelError: energies that the fit needs are missing.
        ConfigError: energies are given, but not for every element.
    """
    elements = np.unique(training.numbers)
    known = isolated_energies(isolated) if isolated is not None else {}
    rank = 0
    if "energy" not in training.labels or config.self_energies == "none":
        energies = dict.fromkeys(elements.tolist(), 0.0)
    elif config.self_energies == "least_squares":
        energies, rank = _fit_least_squares(training, elements, known)
    elif config.self_energies == "isolated_atoms":
        energies = _pick_isolated(elements, known)
    else:
        energies = _pick_given(elements, config.self_energies)
    unscaled = Targets(energies, scale=1.0, rank=rank, spread={})
    spread = _spread(unscaled.subtract(training))
    return replace(unscaled, scale=_scale(spread, config.scale), spread=spread)


def isolated_energies(isolated: Block) -> dict[int, float]:
    """Return the energy of each isolated element: of neutral atoms, the lowest state.

    Args:
        isolated: structures of one atom each.
    """
    energies: dict[int, float] = {}
    labels = isolated.labels.get("energy", np.full(len(isolated), np.nan))
    for k in np.flatnonzero(np.isfinite(labels) & (isolated.total_charge == 0.0)):
        number, energy = int(isolated.numbers[isolated.offsets[k]]), float(labels[k])
        energies[number] = min(energy, energies.get(number, energy))
    return energies


def _pick_isolated(elements: Integers, known: Mapping[int, float]) -> dict[int, float]:
    missing = [z for z in elements.tolist() if z not in known]
    if missing:
        raise LabelError(
            f"self_energies = 'isolated_atoms': no energy of a neutral isolated atom of "
            f"{_symbols(missing)}; add such structures to the store, or take 'least_squares'",
            missing=_symbols(missing),
        )
    return {z: known[z] for z in elements.tolist()}


def _pick_given(elements: Integers, given: Mapping[str, float]) -> dict[int, float]:
    missing = [z for z in elements.tolist() if SYMBOLS[z] not in given]
    if missing:
        raise ConfigError(
            f"[data.targets.self_energies]: {_symbols(missing)} missing; the training rows hold "
            f"{_symbols(elements)}: give an energy for each",
            missing=_symbols(missing),
        )
    return {ATOMIC_NUMBERS[symbol]: energy for symbol, energy in given.items()}


def _fit_least_squares(
    training: Block, elements: Integers, known: Mapping[int, float]
) -> tuple[dict[int, float], int]:
    """Fit one energy per element, as near to the prior as the labels allow."""
    labelled = np.flatnonzero(np.isfinite(training.labels["energy"]))
    if len(labelled) == 0:
        raise LabelError(
            f"self_energies = 'least_squares': none of the {len(training)} training rows has an "
            "energy; check the dataset card, or train without the energy term"
        )
    counts = count_elements(training, elements)[labelled]
    energy = training.labels["energy"][labelled]
    prior = _prior(counts, energy, [known.get(z) for z in elements.tolist()])
    values, rank = minimum_norm_fit(counts, energy, prior)
    return dict(zip(elements.tolist(), values.tolist(), strict=True)), rank


def count_elements(block: Block, elements: Integers) -> Integers:
    """Count the atoms of each of K ascending `elements` in each structure (S, K)."""
    structure = np.repeat(np.arange(len(block)), block.n_atoms)
    cell = structure * len(elements) + np.searchsorted(elements, block.numbers)
    counts = np.bincount(cell, minlength=len(block) * len(elements))
    return counts.astype(np.int64).reshape(len(block), len(elements))


def _prior(counts: Integers, energy: Floats, known: list[float | None]) -> Floats:
    """Return a first guess (K,): isolated atoms, and the mean energy per atom for the others."""
    is_known = np.array([value is not None for value in known])
    values = np.array([0.0 if value is None else value for value in known])
    n_others = counts[:, ~is_known].sum()
    if n_others:
        values[~is_known] = (energy - counts @ values).sum() / n_others
    return values


def minimum_norm_fit(counts: Integers, energy: Floats, prior: Floats) -> tuple[Floats, int]:
    """Minimize |counts @ x - energy| and, where that leaves x open, |x - prior|.

    With one composition only the sum is known, and the correction is spread along that
    composition: the mean energy is removed exactly whatever the rank.

    Args:
        counts: (S, K).
        energy: (S,) in eV.
        prior: (K,) in eV.

    Returns:
        x (K,) in eV, and the rank of `counts`.
    """
    # Rows of one composition act through their mean; the fit is then small, whatever S is.
    compositions, which, n_rows = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    residual = energy - counts @ prior
    mean = np.bincount(which.reshape(-1), weights=residual) / n_rows  # (C,)
    weight = np.sqrt(n_rows)
    correction, _, rank, _ = np.linalg.lstsq(
        compositions * weight[:, None], mean * weight, rcond=None
    )
    return prior + correction, int(rank)


def _spread(training: Block) -> dict[str, float]:
    """Return the typical size of every label that occurs, self energies already taken out."""
    spread = {}
    for name, values in training.labels.items():
        key, centered = name, name != "forces"
        if name == "energy":
            key, values = "energy_per_atom", values / training.n_atoms
        values = values[np.isfinite(values)]
        if len(values):
            around = values.mean() if centered else 0.0
            spread[key] = max(float(np.sqrt(np.square(values - around).mean())), FLOOR)
    return spread


def _scale(spread: Mapping[str, float], kind: str) -> float:
    """Choose the scale; without forces the energies give it, and 1 eV where nothing varies."""
    wanted = {"force_rms": ("forces", "energy_per_atom"), "energy_std": ("energy_per_atom",)}
    for name in wanted.get(kind, ()):
        if spread.get(name, 0.0) > FLOOR:
            return spread[name]
    return 1.0


def _symbols(numbers: Any) -> str:
    return ", ".join(SYMBOLS[int(number)] for number in numbers)
