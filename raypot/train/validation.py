"""How good a state is on the validation rows: the same terms as in training, and errors.

**Shapes** T terms.
"""

from collections.abc import Generator
from contextlib import closing
from typing import cast

import torch
from torch import Tensor, nn

from raypot.batch import Batch
from raypot.data.loader import Loader
from raypot.losses.metrics import ErrorSums, score
from raypot.losses.weighting import TotalLoss
from raypot.nn.derivatives import predict
from raypot.train.ranks import Ranks

Steps = Generator[tuple[Batch, ...], None, None]


def validate(
    model: nn.Module,
    state: dict[str, Tensor],
    loss: TotalLoss,
    loader: Loader,
    ranks: Ranks,
) -> tuple[Tensor, dict[str, float]]:
    """Judge a state.

    Args:
        model: gives the structure of the computation.
        state: parameters and buffers.
        loss: the terms.
        loader: gives this rank its share of the rows.
        ranks: over which everything is summed.

    Returns:
        The mean of each term (T,) float64 on the CPU, and the errors by `<metric>/rmse` and
        `<metric>/mae`.
    """
    device = next(iter(state.values())).device
    errors = ErrorSums(loss.wanted, device)
    totals = torch.zeros(len(loss.names), dtype=torch.float64, device=device)
    counts = torch.zeros(len(loss.names), dtype=torch.float64)
    with torch.no_grad(), closing(steps_of(loader, 0)) as steps:
        for batch in (batch for step in steps for batch in step):
            counts += loss.counts(batch)
            moved = move(batch, device)
            predicted = predict(model, state, moved, loss.wanted)
            totals += loss.totals(predicted, moved)
            errors.add(predicted, moved)
    errors.sums = ranks.sum(errors.sums)
    means = ranks.sum(totals).cpu() / ranks.sum(counts)
    return means, errors.result()


def as_row(
    names: tuple[str, ...],
    means: Tensor,
    weights: Tensor,
    errors: dict[str, float],
    spread: dict[str, float],
) -> dict[str, float]:
    """Return the validation part of the row of an epoch.

    Args:
        names: the T terms.
        means: (T,).
        weights: (T,) in force.
        errors: as `validate` returns them.
        spread: of the training labels.
    """
    row = {
        "val/loss": float((weights * means).sum()),
        "val/score": score(errors, spread),
    }
    row |= {f"val/{name}": mean for name, mean in zip(names, means.tolist(), strict=True)}
    return row | {f"val/{name}": value for name, value in errors.items()}


def steps_of(loader: Loader, number: int, start: int = 0) -> Steps:
    """Return the steps of an epoch as what they are: a generator that can be closed."""
    return cast(Steps, loader.epoch(number, start))


def move(batch: Batch, device: torch.device) -> Batch:
    """Bring a batch to the device without waiting for the copy."""
    return batch if device.type == "cpu" else batch.pin().to(device)
