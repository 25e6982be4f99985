"""The training step: totals of the loss and gradients of the parameters, as one pure function.

Forces are derivatives of the energy inside the loss, so the gradient is nested: the inner one by
positions and strain (`raypot.nn.derivatives.predict`, from `torch.func`), the outer one by the
parameters. Eager, the outer one is taken by autograd, which is faster than a second
`torch.func.grad` because no graph of it is kept. Compiled, it is the nest of both: a compiler that
is given the whole nest may fuse across both; one that is given only the forces returns wrong
parameter gradients without a word, which is why it never is.

**Shapes** N atoms, E edges, S structures, T terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raypot.batch import Batch
from raypot.losses.weighting import TotalLoss
from raypot.nn.derivatives import predict
from raypot.properties import PROPERTIES
from raypot.train.compiling import compile_is_worth_it, compile_step, mark_sizes, tune_allocator

__all__ = [
    "Step",
    "StepResult",
    "compile_is_worth_it",
    "make_step",
    "trainable_names",
    "tune_allocator",
]

State = dict[str, Tensor]


class StepResult(NamedTuple):
    """What one micro-batch gives; results of several are added.

    Args:
        totals: sums of the errors (T,), not divided and without weights.
        gradients: of sum_t scales_t totals_t, by name of the trainable parameter.
    """

    totals: Tensor
    gradients: State


Step = Callable[[State, Batch, Tensor], StepResult]


def make_step(model: nn.Module, loss: TotalLoss, *, compile: bool = False) -> Step:
    """Build `step(state, batch, scales) -> StepResult`.

    The step reads no value of `model` and changes nothing. It does not wait for the device.

    Args:
        model: gives the structure of the computation.
        loss: the terms.
        compile: run as one compiled graph. The first call then takes a minute or so; batches of
            other shapes do not compile again.

    Returns:
        A function of the state (parameters and buffers by name), the batch, and the factors of
        the totals (T,), which are weight / count.
    """
    names = trainable_names(model)

    def objective(
        trainable: State, fixed: State, batch: Batch, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        predicted = predict(model, {**fixed, **trainable}, batch, loss.wanted)
        totals = loss.totals(predicted, batch)
        return (scales * totals).sum(), totals

    def nested(trainable: State, fixed: State, batch: Batch, scales: Tensor) -> StepResult:
        gradients, totals = torch.func.grad(objective, has_aux=True)(
            trainable, fixed, batch, scales
        )
        return StepResult(totals, gradients)

    def recorded(trainable: State, fixed: State, batch: Batch, scales: Tensor) -> StepResult:
        leaves = {name: tensor.requires_grad_() for name, tensor in trainable.items()}
        with torch.enable_grad():
            value, totals = objective(leaves, fixed, batch, scales)
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return StepResult(totals.detach(), dict(zip(leaves, gradients, strict=True)))

    compiled = compile_step(nested) if compile else None

    def step(state: State, batch: Batch, scales: Tensor) -> StepResult:
        trainable = {name: state[name].detach() for name in names}
        fixed = {name: tensor.detach() for name, tensor in state.items() if name not in trainable}
        scales = scales.to(batch.positions.dtype)
        if compiled is None or not _has_room(batch):
            return recorded(trainable, fixed, batch, scales)
        batch = _at_least_two(batch)
        mark_sizes((*trainable.values(), *fixed.values(), scales), batch)
        return compiled(trainable, fixed, batch, scales)

    return step


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that training changes; buffers are never among them."""
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    )


def _has_room(batch: Batch) -> bool:
    """Return whether atoms and edges are several: 0 and 1 are special cases of the compiler."""
    return batch.positions.shape[0] > 1 and batch.source.shape[0] > 1


def _at_least_two(batch: Batch) -> Batch:
    """Append a structure without atoms to a single one.

    The compiler treats the size 1 as a constant and would compile again; two structures are like
    any number. The appended one is open, has no label and weight 0: it changes no total.
    """
    if batch.cell.shape[0] != 1:
        return batch
    columns = {}
    for name in ("cell", "pbc", "total_charge", "weight", "row"):
        column = getattr(batch, name)
        columns[name] = torch.cat([column, torch.zeros_like(column)])
    for name in ("n_atoms", "spin"):
        column = getattr(batch, name)
        columns[name] = torch.cat([column, torch.ones_like(column)])
    labels = {
        name: torch.cat([label, torch.full_like(label, torch.nan)])
        if PROPERTIES[name].level == "structure"
        else label
        for name, label in batch.labels.items()
    }
    return batch._replace(**columns, labels=labels)
