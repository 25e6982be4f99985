"""Optimizers that work on named tensors, without an autograd graph and without host syncs.

The step hands over gradients; the optimizer clips them, changes the parameters in place, and
leaves everything as it was when the gradient is not finite. All of it happens on the device: the
kernels of `torch.optim` with `fused=True` take the verdict on the gradient as a tensor. On a CPU
they need a third of the time of the kernels that treat a list of tensors.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raypot.config import Choice, Config, lookup
from raypot.errors import CheckpointError, ConfigError
from raypot.train.averaging import Averager
from raypot.train.rates import LR_SCHEDULES, ConstantRate, RateState, verdict

__all__ = [
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "Averager",
    "ConstantRate",
    "Optimizer",
    "RateState",
    "build_optimizer",
    "is_decayed",
    "verdict",
]


Memory = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """What every optimizer has."""

    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="rate at the start")
    weight_decay: float = Field(
        default=0.0, ge=0, description="of weight matrices; biases and embeddings have none"
    )


class AdamConfig(OptimizerConfig):
    """Adam; its weight decay is added to the gradient."""

    betas: tuple[Memory, Memory] = Field(
        default=(0.9, 0.999), description="memory of the gradient and of its square"
    )
    amsgrad: bool = Field(default=False, description="divide by the largest square seen so far")


class AdamWConfig(AdamConfig):
    """AdamW: weight decay apart from the gradient (Loshchilov and Hutter, arXiv:1711.05101)."""

    weight_decay: float = Field(
        default=1e-3, ge=0, description="of weight matrices; biases and embeddings have none"
    )


class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    learning_rate: float = Field(default=1e-2, gt=0, le=10, description="rate at the start")
    momentum: Memory = Field(default=0.9, description="memory of the gradient")
    nesterov: bool = Field(default=False, description="look ahead along the momentum")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0; set one of them")
        return self


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "adam": AdamConfig,
    "sgd": SGDConfig,
}
_KERNELS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies: to weight matrices, not to biases and embeddings."""
    return parameter.dim() > 1 and "embedding" not in name


def build_optimizer(
    choice: Choice, parameters: Mapping[str, Tensor], clip_grad: float | None = None
) -> "Optimizer":
    """Build the chosen optimizer.

    Args:
        choice: a name of `OPTIMIZERS` and its settings.
        parameters: the tensors to train by name, changed in place; nothing else may replace them.
        clip_grad: largest norm of the gradient of all parameters; None or 0: no clipping.

    Raises:
        ConfigError: nothing to train, or a tensor that the kernels cannot take.
    """
    for name, tensor in parameters.items():
        if not tensor.is_floating_point() or not tensor.is_contiguous():
            raise ConfigError(
                f"optimizer: {name} is {tensor.dtype} with strides {tensor.stride()}, "
                "expected floating numbers without gaps"
            )
    if not parameters:
        raise ConfigError("optimizer: the model has no parameters to train")
    return Optimizer(choice, parameters, clip_grad)


class Optimizer:
    """An optimizer of `torch.optim` behind a mapping of names to gradients.

    Args:
        choice: a name of `OPTIMIZERS` and its settings.
        parameters: the tensors to train by name.
        clip_grad: largest norm of the gradient; None or 0: no clipping.
    """

    def __init__(
        self, choice: Choice, parameters: Mapping[str, Tensor], clip_grad: float | None
    ) -> None:
        settings = choice.settings.model_dump()
        self.initial_learning_rate: float = settings.pop("learning_rate")
        decay: float = settings.pop("weight_decay")
        self.name = choice.name
        self.clip_grad = clip_grad or None
        self._live = {name: tensor.detach() for name, tensor in parameters.items()}
        groups = [
            {"params": [p for n, p in self._live.items() if is_decayed(n, p) is decayed],
             "weight_decay": decay if decayed else 0.0}
            for decayed in (True, False)
        ]  # fmt: skip
        kernel = lookup(choice.name, _KERNELS, "optimizer")
        self._inner = kernel(
            [group for group in groups if group["params"]],
            lr=self.initial_learning_rate, fused=True, **settings,
        )  # fmt: skip
        device = next(iter(self._live.values())).device
        self.n_skipped = torch.zeros((), dtype=torch.float32, device=device)
        self._begin_momentum(settings)

    def _begin_momentum(self, settings: Mapping[str, Any]) -> None:
        """Start the momentum at zero, which the first gradient may otherwise leave undefined."""
        if settings.get("momentum"):
            for tensor in self._live.values():
                self._inner.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._inner.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group in self._inner.param_groups:
            group["lr"] = rate

    def apply(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Clip the gradients and take one step; a gradient that is not finite changes nothing.

        Args:
            gradients: one for each parameter, by name; they are left as they are.

        Returns:
            The norm before clipping () on the device; infinite or NaN where the step was skipped.
        """
        # The fused kernels read memory in order and do not look at strides.
        given = [gradients[name].contiguous() for name in self._live]
        norm = torch.nn.utils.get_total_norm(given)
        is_bad = (~norm.isfinite()).to(torch.float32)
        if self.clip_grad is not None:
            given = list(torch._foreach_mul(given, (self.clip_grad / (norm + 1e-6)).clamp(max=1.0)))
        for parameter, gradient in zip(self._live.values(), given, strict=True):
            parameter.grad = gradient
        self._inner.found_inf = is_bad  # type: ignore[attr-defined]
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)
        self.n_skipped += is_bad
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors by dotted name, and JSON values.

        Names are `<slot>.<parameter>`, where the slots are those of `torch.optim`.
        """
        tensors = {
            f"{slot}.{name}": value
            for name, tensor in self._live.items()
            for slot, value in self._inner.state[tensor].items()
            if isinstance(value, Tensor)
        }
        return {
            "name": self.name,
            "learning_rate": self.learning_rate,
            "n_skipped": self.n_skipped,
            **tensors,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: it was taken from another optimizer or model.
        """
        if state.get("name") != self.name:
            raise CheckpointError(
                f"optimizer state is of {state.get('name')!r}, expected {self.name!r}; "
                "start over with --new",
            )
        slots: dict[str, dict[str, Tensor]] = {name: {} for name in self._live}
        for key, value in state.items():
            slot, dot, name = key.partition(".")
            if dot and name not in slots:
                raise CheckpointError(f"optimizer state holds {key}, which the model has not")
            if dot:
                slots[name][slot] = value
        self.learning_rate = float(state["learning_rate"])
        self.n_skipped.copy_(state["n_skipped"])
        self._fill(slots)

    def _fill(self, slots: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy the slots of each parameter, in the dtype that they were saved in."""
        for name, tensor in self._live.items():
            for slot, value in slots[name].items():
                if value.dim() and value.shape != tensor.shape:
                    raise CheckpointError(
                        f"optimizer state {slot}.{name} has shape {tuple(value.shape)}, expected "
                        f"{tuple(tensor.shape)}; start over with --new"
                    )
            self._inner.state[tensor] = {
                slot: value.detach().to(tensor.device, copy=True)
                for slot, value in slots[name].items()
            }
