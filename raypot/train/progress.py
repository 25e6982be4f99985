"""What a run remembers: where it stands, what was best, and the sums of the running epoch.

**Shapes** T terms.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from raypot.errors import CheckpointError


@dataclass
class Position:
    """Where a run stands; plain values that go into a checkpoint.

    Args:
        epoch: whole epochs that are over.
        start: steps that are over in the running epoch.
        step: steps that are over in all.
        monitored: the number that models are compared by, after each epoch.
        best_epoch: the epoch with the lowest of them, from 1; 0 before the first.
        best: validation metrics of that epoch.
        lowest: lowest mean of each term over the training rows.
        rollbacks: how often the run went back to a checkpoint.
    """

    epoch: int = 0
    start: int = 0
    step: int = 0
    monitored: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)
    rollbacks: int = 0

    @property
    def best_monitored(self) -> float | None:
        """The lowest monitored number; None before the first epoch is over."""
        return self.monitored[self.best_epoch - 1] if self.best_epoch else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Position":
        """Rebuild from plain values.

        Raises:
            CheckpointError: they were not written by this version.
        """
        try:
            return cls(**tree)
        except TypeError as error:
            raise CheckpointError(
                f"checkpoint: the position of the run is odd ({error}); start over with --new"
            ) from error


class EpochSums:
    """Sums over the steps of an epoch in one tensor on the device, brought over once.

    Args:
        names: the T terms.
        device: where the steps run.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.totals = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.counts = torch.zeros(len(names), dtype=torch.float64)
        self.n_structures = torch.zeros((), dtype=torch.float64)

    def add(self, counts: Tensor, n_structures: Tensor, norm: Tensor) -> None:
        """Add a step; its totals were added batch by batch.

        Args:
            counts: (T,) over all ranks, on the CPU.
            n_structures: () over all ranks, on the CPU.
            norm: () of the gradient, on the device.
        """
        self.counts += counts
        self.n_structures += n_structures
        self.norm += norm.nan_to_num(0.0, 0.0, 0.0)

    def add_totals(self, totals: Tensor) -> None:
        """Add the totals (T,) of a micro-batch of this rank."""
        self.totals += totals

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint within the epoch needs."""
        return {
            "totals": self.totals,
            "norm": self.norm,
            "counts": self.counts,
            "n_structures": self.n_structures,
        }

    def load(self, tensors: dict[str, Tensor], start: str, is_first: bool) -> None:
        """Go on from saved sums; the totals are those of all ranks and are given to one.

        Args:
            tensors: among others those of `tensors`.
            start: what stands before their names.
            is_first: whether this rank takes the totals.
        """
        self.norm.copy_(tensors[f"{start}norm"])
        self.counts.copy_(tensors[f"{start}counts"])
        self.n_structures.copy_(tensors[f"{start}n_structures"])
        if is_first:
            self.totals.copy_(tensors[f"{start}totals"])
