"""The batch of tensors that models and loss terms read.

**Shapes** N atoms, S structures, E edges.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raypot.structures import Block, EdgeBlock


class Batch(NamedTuple):
    """The tensors that models and loss terms read. Floats share one dtype.

    The vector of an edge is `positions[source] - positions[target] + shift @ cell[structure]`;
    edges are sorted by target. A missing label is NaN. The energy label is what is left after the
    training targets were subtracted in float64.
    """

    numbers: Tensor  # atomic numbers (N,)
    structure: Tensor  # the structure of each atom (N,)
    positions: Tensor  # (N, 3) Å
    cell: Tensor  # lattice vectors as rows (S, 3, 3) Å
    pbc: Tensor  # (S, 3)
    n_atoms: Tensor  # atoms of each structure, as a float (S,)
    total_charge: Tensor  # (S,) e
    spin: Tensor  # multiplicity (S,)
    weight: Tensor  # weight of each structure in the loss (S,)
    row: Tensor  # row number in the store (S,)
    source: Tensor  # (E,)
    target: Tensor  # (E,)
    shift: Tensor  # periods of the cell (E, 3)
    labels: dict[str, Tensor]  # property to (N, ...) or (S, ...)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to a device, without waiting for the copy where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """Copy to pinned memory, from where copies to a GPU do not block."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(getattr(self, name)) for name in self._fields if name != "labels"}
        return Batch(**tensors, labels={name: change(x) for name, x in self.labels.items()})


def collate(block: Block, edges: EdgeBlock, dtype: torch.dtype = torch.float32) -> Batch:
    """Turn columns into the tensors of a batch.

    Args:
        block: S structures with the labels that the batch shall carry.
        edges: their edges, in the same order.
        dtype: of every floating tensor.
    """
    counts = block.n_atoms
    first_atom = np.repeat(block.offsets[:-1], np.diff(edges.offsets))
    return Batch(
        numbers=torch.from_numpy(block.numbers),
        structure=torch.from_numpy(np.repeat(np.arange(len(block)), counts)),
        positions=torch.from_numpy(block.positions).to(dtype),
        cell=torch.from_numpy(block.cell).to(dtype),
        pbc=torch.from_numpy(block.pbc),
        n_atoms=torch.from_numpy(counts).to(dtype),
        total_charge=torch.from_numpy(block.total_charge).to(dtype),
        spin=torch.from_numpy(block.spin).to(dtype),
        weight=torch.from_numpy(block.weight).to(dtype),
        row=torch.from_numpy(block.rows),
        source=torch.from_numpy(edges.source + first_atom),
        target=torch.from_numpy(edges.target + first_atom),
        shift=torch.from_numpy(edges.shift).to(dtype),
        labels={name: torch.from_numpy(x).to(dtype) for name, x in block.labels.items()},
    )


def segment_sum(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    """Sum the rows of `values` that share an index.

    `index_add` is the fast form on CPU and GPU; its gradient is a gather.

    Args:
        values: (K, ...).
        index: segment of each row (K,).
        n_segments: number of segments.

    Returns:
        (n_segments, ...); zero for a segment without rows.
    """
    out = values.new_zeros((n_segments, *values.shape[1:]))
    return out.index_add(0, index, values)
