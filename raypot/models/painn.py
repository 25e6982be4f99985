"""PaiNN: equivariant messages with one vector per channel.

**Shapes** N atoms, E edges, C channels, K radial functions.
**Source** K. T. Schütt, O. T. Unke, M. Gastegger, arXiv:2102.03150 (ICML 2021), eq. 7-9, figure 2.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from raypot.batch import Batch, segment_sum
from raypot.models.base import AtomisticModel, ModelConfig
from raypot.nn.heads import Features
from raypot.nn.layers import MLP, EdgeFilter, dense, with_envelope
from raypot.nn.radial import EdgeDescription, Edges

# Squared unit of the vectors; keeps the norm of a zero vector differentiable.
_NORM_FLOOR = 1e-8


class PaiNNConfig(ModelConfig):
    """Settings of PaiNN."""


class VectorMessage(nn.Module):
    """Send scalar and vector messages from every neighbor to its target (eq. 7, 8).

    A rotation of the geometry rotates the vector update and leaves the scalar
    update alone. Both go to zero smoothly at the cutoff.

    Args:
        n_channels: width C of the scalar and of the vector features.
        n_radial: number K of radial functions that describe an edge.
        has_vectors: False in the first layer, where all vectors are zero.
    """

    def __init__(self, n_channels: int, n_radial: int, has_vectors: bool) -> None:
        super().__init__()
        n_gates = 3 if has_vectors else 2
        self.mix = MLP(n_channels, n_channels, n_gates * n_channels)
        self.filter = EdgeFilter(n_radial, n_channels, n_gates)

    def forward(
        self, scalars: Tensor, vectors: Tensor | None, edges: Edges, enveloped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute both updates; the caller adds them.

        Args:
            scalars: (N, C).
            vectors: (N, 3, C), or None in the first layer.
            edges: unit directions (E, 3).
            enveloped: radial functions times the envelope (E, K + 1).

        Returns:
            The updates of the scalars (N, C) and of the vectors (N, 3, C).
        """
        n_atoms, n_channels = scalars.shape
        weights = self.filter(enveloped)  # (E, C) each
        gates = self.mix(scalars).split(n_channels, dim=-1)  # (N, C) each

        scalar = gates[0].index_select(0, edges.source) * weights[0]  # (E, C)
        along_edge = gates[1].index_select(0, edges.source) * weights[1]  # (E, C)
        vector = edges.direction[:, :, None] * along_edge[:, None, :]  # (E, 3, C)
        if vectors is not None:
            # Gates multiply vectors on atoms, where there are fewer rows than on edges.
            gated = vectors * gates[2][:, None, :]  # (N, 3, C)
            carried = gated.index_select(0, edges.source)  # (E, 3, C)
            vector = vector + carried * weights[2][:, None, :]  # (E, 3, C)

        return (
            segment_sum(scalar, edges.target, n_atoms),  # (N, C)
            segment_sum(vector, edges.target, n_atoms),  # (N, 3, C)
        )


class VectorUpdate(nn.Module):
    """Mix scalars and vectors of each atom (eq. 9).

    Args:
        n_channels: width C of the scalar and of the vector features.
        keeps_vectors: False where nothing reads the vectors afterwards.
    """

    def __init__(self, n_channels: int, keeps_vectors: bool) -> None:
        super().__init__()
        self.project = dense(n_channels, 2 * n_channels, bias=False)
        self.mix = MLP(2 * n_channels, n_channels, (3 if keeps_vectors else 2) * n_channels)
        self.keeps_vectors = keeps_vectors

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute both updates; the caller adds them.

        Args:
            scalars: (N, C).
            vectors: (N, 3, C).

        Returns:
            The updates of the scalars (N, C) and of the vectors (N, 3, C).
        """
        n_channels = scalars.shape[1]
        measured, turned = self.project(vectors).split(n_channels, dim=-1)  # (N, 3, C) each
        norm = (measured.square().sum(1) + _NORM_FLOOR).sqrt()  # (N, C)
        gates = self.mix(torch.cat([scalars, norm], dim=-1)).split(n_channels, dim=-1)
        scalar_update = gates[0] + gates[1] * (measured * turned).sum(1)  # (N, C)
        if not self.keeps_vectors:
            return scalar_update, None
        return scalar_update, turned * gates[2][:, None, :]


class PaiNN(AtomisticModel):
    """Polarizable atom interaction network.

    Args:
        config: the settings.
        elements: atomic numbers that it knows, ascending.
        outputs: heads to build.
        scale: eV; multiplies the summed energies of atoms.
    """

    Config: ClassVar[type[ModelConfig]] = PaiNNConfig
    has_vectors: ClassVar[bool] = True

    def __init__(
        self,
        config: PaiNNConfig,
        elements: tuple[int, ...],
        outputs: tuple[str, ...],
        scale: float = 1.0,
    ) -> None:
        super().__init__(config, elements, outputs, scale)
        width, n_layers = config.n_channels, config.n_layers
        self.describe = EdgeDescription(
            config.n_radial, config.cutoff, config.radial, config.envelope
        )
        self.embedding = nn.Embedding(len(elements), width)
        self.messages = nn.ModuleList(
            VectorMessage(width, config.n_radial, has_vectors=layer > 0)
            for layer in range(n_layers)
        )
        self.updates = nn.ModuleList(
            VectorUpdate(width, keeps_vectors=layer < n_layers - 1 or "dipole" in outputs)
            for layer in range(n_layers)
        )

    def features(self, batch: Batch) -> Features:
        """Describe every atom by scalars (N, C) and vectors (N, 3, C)."""
        edges: Edges = self.describe(batch)
        enveloped = with_envelope(edges.radial, edges.envelope)  # (E, K + 1)
        scalars: Tensor = self.embedding(self.kinds(batch.numbers))  # (N, C)
        vectors: Tensor | None = None  # (N, 3, C)
        for message, update in zip(self.messages, self.updates, strict=True):
            scalar_update, vector_update = message(scalars, vectors, edges, enveloped)
            scalars = scalars + scalar_update
            vectors = vector_update if vectors is None else vectors + vector_update
            scalar_update, vector_update = update(scalars, vectors)
            scalars = scalars + scalar_update
            vectors = None if vector_update is None else vectors + vector_update
        return Features(scalars, vectors)
