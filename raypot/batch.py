"""The batch of tensors that models and loss terms read.

**Shapes** N atoms, S structures, E edges.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypot.properties import PROPERTIES
from raypot.structures import Block, EdgeBlock, Integers

NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


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
    return collate_consecutive(block, edges, np.array([0, len(block)]), dtype)[0]


def collate_consecutive(
    block: Block, edges: EdgeBlock, bounds: Integers, dtype: torch.dtype = torch.float32
) -> list[Batch]:
    """Turn columns into consecutive batches; they share the memory of one conversion.

    Args:
        block: S structures with the labels that the batches shall carry.
        edges: their edges, in the same order.
        bounds: the first structure of each of B batches, and S at the end (B + 1,).
        dtype: of every floating tensor.
    """
    counts = block.n_atoms
    first_structure = np.repeat(bounds[:-1], np.diff(bounds))  # of the batch it is in (S,)
    first_atom = block.offsets[:-1] - block.offsets[first_structure]  # (S,)
    first_of_edge = np.repeat(first_atom, np.diff(edges.offsets))  # (E,)
    structure = np.repeat(np.arange(len(block)) - first_structure, counts)  # (N,)
    cuts = {
        "atom": _slices(block.offsets[bounds]),
        "structure": _slices(bounds),
        "edge": _slices(edges.offsets[bounds]),
    }
    fields = [  # in the order of Batch
        _cut(block.numbers, cuts["atom"], dtype),
        _cut(structure, cuts["atom"], dtype),
        _cut(block.positions, cuts["atom"], dtype),
        _cut(block.cell, cuts["structure"], dtype),
        _cut(block.pbc, cuts["structure"], dtype),
        _cut(counts.astype(np.float64), cuts["structure"], dtype),
        _cut(block.total_charge, cuts["structure"], dtype),
        _cut(block.spin, cuts["structure"], dtype),
        _cut(block.weight, cuts["structure"], dtype),
        _cut(block.rows, cuts["structure"], dtype),
        _cut(edges.source + first_of_edge, cuts["edge"], dtype),
        _cut(edges.target + first_of_edge, cuts["edge"], dtype),
        _cut(edges.shift.astype(np.float64), cuts["edge"], dtype),
    ]
    labels = [_cut(x, cuts[PROPERTIES[name].level], dtype) for name, x in block.labels.items()]
    return [
        Batch._make(
            [
                *(field[k] for field in fields),
                {name: label[k] for name, label in zip(block.labels, labels, strict=True)},
            ]
        )
        for k in range(len(bounds) - 1)
    ]


def _slices(bounds: Integers) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(bounds.tolist())]


def _cut(column: NDArray[Any], slices: list[slice], dtype: torch.dtype) -> list[Tensor]:
    """Cut a column into tensors, floats in `dtype`.

    The tensors start their own storage: views of a common one would be guarded by `torch.compile`.
    """
    if column.dtype.kind == "f":
        column = column.astype(NUMPY_DTYPES.get(dtype, np.float64), copy=False)
        return [torch.from_numpy(column[part]).to(dtype) for part in slices]
    return [torch.from_numpy(column[part]) for part in slices]


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
