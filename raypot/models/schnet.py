"""SchNet: continuous-filter convolutions over distances.

**Shapes** N atoms, E edges, C channels, K radial functions.
**Source** K. T. Schütt, H. E. Sauceda, P.-J. Kindermans, A. Tkatchenko, K.-R. Müller, J. Chem.
Phys. 148, 241722 (2018), figure 2; the filters end in an envelope, which the paper left out.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from raypot.batch import Batch, segment_sum
from raypot.models.base import AtomisticModel, ModelConfig
from raypot.nn.heads import Features
from raypot.nn.layers import MLP, dense, shifted_softplus
from raypot.nn.radial import EdgeDescription, Edges, EnvelopeName, RadialName


class SchNetConfig(ModelConfig):
    """Settings of SchNet."""

    radial: RadialName = Field("gaussian", description="Basis of the distance: gaussian, bessel.")
    envelope: EnvelopeName = Field(
        "cosine", description="What ends the edges at the cutoff: cosine, polynomial."
    )


class Interaction(nn.Module):
    """Filter the features of the neighbors by distance, sum them, and mix channels.

    x_i <- x_i + f(sum_j (W x_j) * w(d_ij)), where the filter w is zero from the cutoff on.

    Args:
        n_channels: width C of features and filters.
        n_radial: number K of radial functions.
    """

    def __init__(self, n_channels: int, n_radial: int) -> None:
        super().__init__()
        self.sent = dense(n_channels, n_channels, bias=False)
        self.filter = MLP(n_radial, n_channels, n_channels, shifted_softplus)
        self.mix = MLP(n_channels, n_channels, n_channels, shifted_softplus)

    def forward(self, scalars: Tensor, edges: Edges) -> Tensor:
        """Compute the update of the scalars (N, C); the caller adds it.

        Args:
            scalars: (N, C).
            edges: radial functions (E, K) and envelope (E,).
        """
        weights = self.filter(edges.radial) * edges.envelope[:, None]  # (E, C)
        messages = self.sent(scalars).index_select(0, edges.source) * weights  # (E, C)
        update: Tensor = self.mix(segment_sum(messages, edges.target, scalars.shape[0]))
        return update


class SchNet(AtomisticModel):
    """SchNet.

    Args:
        config: the settings.
        elements: atomic numbers that it knows, ascending.
        outputs: heads to build.
        scale: eV; multiplies the summed energies of atoms.
    """

    Config: ClassVar[type[ModelConfig]] = SchNetConfig

    def __init__(
        self,
        config: SchNetConfig,
        elements: tuple[int, ...],
        outputs: tuple[str, ...],
        scale: float = 1.0,
    ) -> None:
        super().__init__(config, elements, outputs, scale)
        width = config.n_channels
        self.describe = EdgeDescription(
            config.n_radial, config.cutoff, config.radial, config.envelope
        )
        self.embedding = nn.Embedding(len(elements), width)
        self.interactions = nn.ModuleList(
            Interaction(width, config.n_radial) for _ in range(config.n_layers)
        )

    def features(self, batch: Batch) -> Features:
        """Describe every atom by scalars (N, C)."""
        edges: Edges = self.describe(batch)
        scalars: Tensor = self.embedding(self.kinds(batch.numbers))  # (N, C)
        for interaction in self.interactions:
            scalars = scalars + interaction(scalars, edges)
        return Features(scalars, None)
