"""What training changes: the parameters, their average, the optimizer and its learning rate."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from raypot.nn.derivatives import model_state
from raypot.train.optim import Averager, ConstantRate, RateState, build_optimizer, verdict
from raypot.train.progress import Position
from raypot.train.settings import TrainingConfig
from raypot.train.step import trainable_names
from raypot.train.tensor_file import TensorFile

ROLLBACK_FACTOR = 0.5  # of the learning rate


class Learner:
    """The parameters of a model and everything that moves them.

    Args:
        model: on its device; its parameters are changed in place.
        settings: optimizer, schedule, average.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, model: nn.Module, settings: TrainingConfig, steps_per_epoch: int) -> None:
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.state = model_state(model)
        live = {name: self.state[name] for name in trainable_names(model)}
        self.device = next(iter(live.values())).device
        self.names = tuple(live)
        self.optimizer = build_optimizer(settings.optimizer, live, settings.clip_grad)
        self.averager = Averager(live, settings.ema_decay or None)
        self.schedule = cast(ConstantRate, settings.lr_schedule.settings)
        self.rate_state = RateState()

    def update(self, gradients: Mapping[str, Tensor], position: Position) -> Tensor:
        """Take one step.

        Args:
            gradients: by name, of all ranks.
            position: where the run stands.

        Returns:
            The norm of the gradient before clipping () on the device.
        """
        self.optimizer.learning_rate = self.rate(position)
        norm = self.optimizer.apply(gradients)
        self.averager.update()
        return norm

    def no_gradients(self) -> dict[str, Tensor]:
        """Return zeros for every parameter."""
        return {name: torch.zeros_like(self.state[name]) for name in self.names}

    def averaged(self) -> dict[str, Tensor]:
        """Return parameters and buffers with the averages in place; they are live."""
        return {**self.state, **self.averager.state()}

    def rate(self, position: Position) -> float:
        """Return the learning rate of the next step, warm-up included."""
        return self.schedule.rate(*self._where(position))

    def plain_rate(self, position: Position) -> float:
        """Return the learning rate without the factor of the warm-up."""
        return self.schedule.plain_rate(*self._where(position))

    def end_epoch(self, monitored: float) -> None:
        """Tell the schedule how the epoch was judged."""
        self.rate_state = self.schedule.advance(self.rate_state, monitored)

    def is_exhausted(self, position: Position) -> bool:
        """Say whether patience or the learning rate has run out."""
        rate, floor = self.plain_rate(position), self.settings.min_learning_rate
        return verdict(position.monitored, self.settings.patience, rate, floor) == "stop"

    def content(self) -> TensorFile:
        """Return everything that a resumed run needs."""
        tensors = {f"state.{name}": tensor for name, tensor in self.state.items()}
        facts: dict[str, Any] = {"rate": self.rate_state.to_json()}
        for part, values in self._parts().items():
            facts[part] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
            tensors |= {f"{part}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        return TensorFile(facts, tensors)

    def load(self, content: TensorFile) -> None:
        """Go on where `content` was taken."""
        for name, tensor in self.state.items():
            tensor.copy_(content.tensors[f"state.{name}"])
        self.rate_state = RateState.from_json(content.tree["rate"])
        self.optimizer.load_state_dict(_part(content, "optimizer"))
        self.averager.load_state_dict(_part(content, "averager"))

    def _parts(self) -> dict[str, dict[str, Any]]:
        return {"optimizer": self.optimizer.state_dict(), "averager": self.averager.state_dict()}

    def _where(self, position: Position) -> tuple[float, int, int, RateState, float]:
        """Return what a schedule asks for."""
        initial = self.optimizer.initial_learning_rate * ROLLBACK_FACTOR**position.rollbacks
        n_steps = self.settings.n_epochs * self.steps_per_epoch
        floor = self.settings.min_learning_rate
        return initial, position.step, n_steps, self.rate_state, floor


def _part(content: TensorFile, part: str) -> dict[str, Any]:
    """Return facts and tensors of one part under their own names."""
    start = f"{part}."
    tensors = {
        name.removeprefix(start): tensor
        for name, tensor in content.tensors.items()
        if name.startswith(start)
    }
    return {**content.tree[part], **tensors}
