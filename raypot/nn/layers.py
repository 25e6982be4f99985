"""Dense layers, the multilayer perceptron and the filter of an edge.

**Shapes** E edges, K radial functions.
**Source** weights by X. Glorot and Y. Bengio, AISTATS 2010; biases start at zero. The shifted
softplus is that of SchNet, J. Chem. Phys. 148, 241722 (2018).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def shifted_softplus(x: Tensor) -> Tensor:
    """Return ln((1 + e^x) / 2): smooth, and zero at zero."""
    return functional.softplus(x) - math.log(2.0)


def dense(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    """Make a linear layer with uniform Glorot weights and a bias of zero."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Two dense layers with an activation between them.

    Args:
        n_in: width of the input.
        n_hidden: width between the layers.
        n_out: width of the output.
        activation: applied after the first layer only.
        bias: whether the second layer has one.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_out: int,
        activation: Activation = functional.silu,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.first = dense(n_in, n_hidden)
        self.second = dense(n_hidden, n_out, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        result: Tensor = self.second(self.activation(self.first(x)))
        return result


class EdgeFilter(nn.Module):
    """Linear maps of the radial functions of an edge, times its envelope.

    w = envelope * (weight radial + bias). The envelope is a factor of each input, so the products
    are done once for all filters, on (E, K) instead of on each (E, C). Filters come one by one,
    because contiguous pieces are faster to multiply than slices of one tensor.

    Args:
        n_radial: number K of radial functions.
        n_channels: width C of each filter.
        n_filters: number of filters.
    """

    def __init__(self, n_radial: int, n_channels: int, n_filters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_filters * n_channels, n_radial))
        self.bias = nn.Parameter(torch.zeros(n_filters * n_channels))
        self.n_channels = n_channels
        nn.init.xavier_uniform_(self.weight)

    def forward(self, enveloped: Tensor) -> list[Tensor]:
        """Compute the filters.

        Args:
            enveloped: what `with_envelope` returns (E, K + 1).

        Returns:
            (E, C) for each filter; zero at and beyond the cutoff.
        """
        weights = torch.cat([self.weight, self.bias[:, None]], dim=1)
        return [enveloped @ part.t() for part in torch.split(weights, self.n_channels)]


def with_envelope(radial: Tensor, envelope: Tensor) -> Tensor:
    """Multiply radial functions (E, K) and a constant by the envelope (E,): (E, K + 1)."""
    constant = envelope[:, None]
    return torch.cat([radial * constant, constant], dim=1)
