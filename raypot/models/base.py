"""What every model is: features of atoms from a subclass, heads from here.

A model is pure: nothing in it depends on values of the data, so that it can be differentiated,
traced, compiled and stacked from outside (`raypot.nn.derivatives`).

**Shapes** N atoms, S structures, E edges, Z elements, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from raypot.batch import Batch
from raypot.config import Config
from raypot.constants import MAX_ATOMIC_NUMBER
from raypot.errors import ConfigError
from raypot.nn.heads import ChargeHead, DipoleHead, EnergyHead, Features
from raypot.nn.radial import EnvelopeName, RadialName

OUTPUTS = ("energy", "charges", "dipole")
_NEEDS: dict[str, tuple[str, ...]] = {
    "energy": ("energy",),
    "forces": ("energy",),
    "stress": ("energy",),
    "charges": ("charges",),
    "dipole": ("charges", "dipole"),
}


class ModelConfig(Config):
    """The settings that all models on edges share."""

    n_channels: int = Field(
        64, ge=2, le=2048, description="Width C of the features of an atom; cost grows with it."
    )
    n_layers: int = Field(
        3, ge=1, le=16, description="Rounds of messages; each widens the view by one cutoff."
    )
    n_radial: int = Field(20, ge=2, le=256, description="Radial functions that describe an edge.")
    cutoff: float = Field(5.0, ge=0.5, le=20.0, description="Neighbors are closer than this, in Å.")
    radial: RadialName = Field("bessel", description="Basis of the distance: gaussian, bessel.")
    envelope: EnvelopeName = Field(
        "polynomial", description="What ends the edges at the cutoff: cosine, polynomial."
    )


class AtomisticModel(nn.Module, ABC):
    """An interatomic potential, up to the derivatives of its energy.

    A subclass writes `features`; scalars must be invariant and vectors equivariant under rotation
    and reflection, and an edge must fade to nothing at the cutoff.

    Args:
        config: the settings of the model.
        elements: atomic numbers that it knows, ascending.
        outputs: heads to build, a subset of energy, charges, dipole; dipole needs charges.
        scale: eV; a buffer that multiplies the summed energies of atoms.

    Raises:
        ConfigError: elements or outputs that make no model.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    has_vectors: ClassVar[bool] = False

    scale: Tensor
    element_numbers: Tensor
    kind_of_number: Tensor

    def __init__(
        self,
        config: ModelConfig,
        elements: tuple[int, ...],
        outputs: tuple[str, ...],
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_elements(elements)
        _check_outputs(outputs)
        self.config = config
        self.cutoff = config.cutoff
        self.elements = elements
        self.outputs = outputs
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("element_numbers", torch.tensor(elements))
        kinds = torch.full((MAX_ATOMIC_NUMBER + 1,), -1)  # -1 stops an unknown element
        kinds[list(elements)] = torch.arange(len(elements))
        self.register_buffer("kind_of_number", kinds)
        width = config.n_channels
        self.energy_head = EnergyHead(width) if "energy" in outputs else None
        self.charge_head = ChargeHead(width) if "charges" in outputs else None
        self.dipole_head = DipoleHead(width, self.has_vectors) if "dipole" in outputs else None

    @abstractmethod
    def features(self, batch: Batch) -> Features:
        """Describe every atom: scalars (N, C) and, where the model has them, vectors (N, 3, C)."""

    def kinds(self, numbers: Tensor) -> Tensor:
        """Return the position of each atomic number (N,) in `elements`: (N,)."""
        return self.kind_of_number.index_select(0, numbers)

    def energy(self, batch: Batch) -> Tensor:
        """Return the energies (S,) in eV, without self energies."""
        return self.forward(batch)["energy"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the outputs of the model, without derivatives.

        Args:
            batch: S structures; edges may be longer than the cutoff.

        Returns:
            energy (S,) in eV without self energies, charges (N,) in e, dipole (S, 3) in e·Å: those
            in `outputs`.
        """
        everything = self.features(with_free_atoms(batch, self.element_numbers))
        n_atoms = batch.positions.shape[0]
        scalars, free = torch.split(everything.scalars, [n_atoms, len(self.elements)])
        vectors = everything.vectors
        features = Features(scalars, None if vectors is None else vectors.narrow(0, 0, n_atoms))
        outputs: dict[str, Tensor] = {}
        if self.energy_head is not None:
            kinds = self.kinds(batch.numbers)
            outputs["energy"] = self.scale * self.energy_head(scalars, free, kinds, batch)
        if self.charge_head is not None:
            outputs["charges"] = self.charge_head(scalars, batch)
        if self.dipole_head is not None:
            outputs["dipole"] = self.dipole_head(features, outputs["charges"], batch)
        return outputs


def with_free_atoms(batch: Batch, numbers: Tensor) -> Batch:
    """Append one structure per element: a single, neutral atom without neighbors.

    Their energies are the zero of each element. They ride along as rows of the same tensors, which
    costs no extra operations.

    Args:
        batch: S structures.
        numbers: atomic numbers to append (Z,).

    Returns:
        S + Z structures without labels of the last Z.
    """
    n_structures, n_free = batch.cell.shape[0], numbers.shape[0]
    zeros = batch.positions.new_zeros(n_free, 3)
    ones = batch.positions.new_ones(n_free)
    structure = torch.arange(n_structures, n_structures + n_free, device=numbers.device)
    return batch._replace(
        numbers=torch.cat([batch.numbers, numbers]),
        structure=torch.cat([batch.structure, structure]),
        positions=torch.cat([batch.positions, zeros]),
        cell=torch.cat([batch.cell, batch.cell.new_zeros(n_free, 3, 3)]),
        pbc=torch.cat([batch.pbc, batch.pbc.new_zeros(n_free, 3)]),
        n_atoms=torch.cat([batch.n_atoms, ones]),
        total_charge=torch.cat([batch.total_charge, zeros[:, 0]]),
        spin=torch.cat([batch.spin, ones]),
    )


def outputs_for(wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the heads that a set of properties needs, in the order of `OUTPUTS`.

    Raises:
        ConfigError: no head gives one of the properties.
    """
    needed: set[str] = set()
    for name in wanted:
        if name not in _NEEDS:
            raise ConfigError(
                f"property {name!r}: no model gives it; expected {', '.join(_NEEDS)}", name=name
            )
        needed.update(_NEEDS[name])
    return tuple(name for name in OUTPUTS if name in needed)


def _check_elements(elements: tuple[int, ...]) -> None:
    in_range = all(1 <= number <= MAX_ATOMIC_NUMBER for number in elements)
    if not elements or not in_range or list(elements) != sorted(set(elements)):
        raise ConfigError(
            f"model elements {elements}: expected ascending atomic numbers from 1 to "
            f"{MAX_ATOMIC_NUMBER}, at least one",
            elements=elements,
        )


def _check_outputs(outputs: tuple[str, ...]) -> None:
    if not outputs or not set(outputs) <= set(OUTPUTS):
        raise ConfigError(
            f"model outputs {outputs}: expected some of {', '.join(OUTPUTS)}", outputs=outputs
        )
    if "dipole" in outputs and "charges" not in outputs:
        raise ConfigError(
            f"model outputs {outputs}: dipole is made from charges; add charges", outputs=outputs
        )
