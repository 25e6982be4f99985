"""The processes that train one model together, as the loop sees them.

`Ranks` is the single process: every operation returns what it is given. `ProcessRanks` talks to the
others through the process group that was set up around it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from raypot.errors import RaypotError

T = TypeVar("T")


class Ranks:
    """One process on its own.

    Args:
        rank: number of this process, from 0.
        world: number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, the same on each."""
        return tensor

    def share(self, value: T) -> T:
        """Return the value that the first rank gave, on every rank."""
        return value

    def first(self, work: Callable[[], T]) -> T:
        """Do `work` on the first rank and return its result on every rank.

        Raises:
            RaypotError: what `work` raised on the first rank, on every rank.
        """
        result: T | None = None
        problem: RaypotError | None = None
        if self.is_first:
            try:
                result = work()
            except RaypotError as error:
                problem = error
        result, problem = self.share((result, problem))
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]

    def sum_all(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum tensors of one dtype over ranks in one message."""
        if self.world == 1:
            return tensors
        flat = self.sum(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
        return {
            name: part.view_as(tensor)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }


class ProcessRanks(Ranks):
    """The members of the process group that torch.distributed was initialized with."""

    def __init__(self) -> None:
        super().__init__(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, the same on each."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def share(self, value: T) -> T:
        """Return the value that the first rank gave, on every rank."""
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]
