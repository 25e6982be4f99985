"""What the loop drives, and what it calls: built by `assembly` and `run`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from raypot.data.loader import Loader
from raypot.losses.weighting import TotalLoss
from raypot.train.learner import Learner
from raypot.train.ranks import Ranks
from raypot.train.step import Step
from raypot.train.tensor_file import TensorFile

Row = dict[str, float]


@dataclass(frozen=True)
class Parts:
    """What the loop drives.

    Args:
        model: gives the structure of the computation.
        learner: holds its parameters.
        loss: the terms.
        step: totals and gradients of a micro-batch.
        train: batches to learn from.
        val: batches to judge by.
        spread: of the training labels, for the score.
        ranks: the processes that train together.
    """

    model: nn.Module
    learner: Learner
    loss: TotalLoss
    step: Step
    train: Loader
    val: Loader
    spread: dict[str, float]
    ranks: Ranks


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; all but `should_stop` on the first rank alone.

    Args:
        should_stop: asked at every step.
        save: writes a checkpoint; the flag says that its epoch is not over.
        reload: returns the newest checkpoint taken at the end of an epoch.
        improved: gets the averaged state, its row and its epoch when it is the best so far.
        record: gets the row of an epoch, before its checkpoint is written.
        on_epoch: gets the row when the checkpoint is on the disk; True ends the run.
        save_after_s: time between checkpoints within an epoch.
    """

    should_stop: Callable[[], bool]
    save: Callable[[TensorFile, bool], None]
    reload: Callable[[], TensorFile]
    improved: Callable[[dict[str, Tensor], Row, int], None]
    record: Callable[[Row], None]
    on_epoch: Callable[[Row], bool]
    save_after_s: float = math.inf
