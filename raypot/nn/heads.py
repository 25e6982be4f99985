"""Readouts: from the features of atoms to energy, charges and dipole.

**Shapes** N atoms, S structures, Z elements, C channels.
**Source** charges and dipoles as in PhysNet, J. Chem. Theory Comput. 15, 3678 (2019), eq. 14, and
PaiNN, arXiv:2102.03150, eq. 11.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from raypot.batch import Batch, segment_sum
from raypot.nn.layers import MLP


class Features(NamedTuple):
    """What a model knows of every atom."""

    scalars: Tensor  # (N, C); unchanged by rotation
    vectors: Tensor | None  # (N, 3, C); rotate with the geometry; None where a model has none


class EnergyHead(nn.Module):
    """Sum over atoms what the neighbors add to the energy of each.

    E = sum_i f(s_i) - f(s_free of the element of i). An atom without neighbors has zero energy
    exactly, so that the total of separated atoms is the sum of their self energies.

    Args:
        n_channels: width C of the features.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        # A last bias would cancel in the difference.
        self.atom = MLP(n_channels, max(n_channels // 2, 1), 1, bias=False)

    def forward(self, scalars: Tensor, free: Tensor, kinds: Tensor, batch: Batch) -> Tensor:
        """Compute the energies of structures, in units of the model's scale.

        Args:
            scalars: of the atoms (N, C).
            free: of one atom of each element without neighbors (Z, C).
            kinds: row of each atom in `free` (N,).
            batch: the geometry.

        Returns:
            (S,).
        """
        values = self.atom(torch.cat([scalars, free])).squeeze(-1)  # (N + Z,)
        bound, alone = torch.split(values, [scalars.shape[0], free.shape[0]])
        return segment_sum(
            bound - alone.index_select(0, kinds), batch.structure, batch.cell.shape[0]
        )


class ChargeHead(nn.Module):
    """Partial charges that sum to the total charge of the structure.

    q_i = raw_i + (total_charge - sum raw) / n_atoms: the same correction for every atom.

    Args:
        n_channels: width C of the features.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.atom = MLP(n_channels, max(n_channels // 2, 1), 1)

    def forward(self, scalars: Tensor, batch: Batch) -> Tensor:
        """Map scalars (N, C) to charges (N,) in e."""
        raw: Tensor = self.atom(scalars).squeeze(-1)  # (N,)
        missing = batch.total_charge - segment_sum(raw, batch.structure, batch.cell.shape[0])
        share = missing / batch.n_atoms.clamp(min=1.0)  # (S,)
        return raw + share.index_select(0, batch.structure)


class DipoleHead(nn.Module):
    """Dipole moments from charges, plus an atomic dipole where there are vectors.

    μ = sum_i q_i (r_i - center) + sum_i sum_c gate_ic v_ic, with the geometric center of the
    structure. For a neutral structure the center cancels; for an ion it is the origin. The dipole
    of a periodic structure depends on the images that the positions stand for.

    Args:
        n_channels: width C of the features.
        has_vectors: whether the features hold vectors.
    """

    def __init__(self, n_channels: int, has_vectors: bool) -> None:
        super().__init__()
        self.gate = MLP(n_channels, n_channels, n_channels) if has_vectors else None

    def forward(self, features: Features, charges: Tensor, batch: Batch) -> Tensor:
        """Compute the dipoles.

        Args:
            features: scalars (N, C) and vectors (N, 3, C).
            charges: (N,) in e.
            batch: the geometry.

        Returns:
            (S, 3) in e·Å.
        """
        n_structures = batch.cell.shape[0]
        n_atoms = batch.n_atoms.clamp(min=1.0)[:, None]
        center = segment_sum(batch.positions, batch.structure, n_structures) / n_atoms  # (S, 3)
        arms = batch.positions - center.index_select(0, batch.structure)  # (N, 3)
        dipole = charges[:, None] * arms  # (N, 3)
        if self.gate is not None and features.vectors is not None:
            gates = self.gate(features.scalars)[:, None, :]  # (N, 1, C)
            dipole = dipole + (features.vectors * gates).sum(-1)  # (N, 3)
        return segment_sum(dipole, batch.structure, n_structures)
