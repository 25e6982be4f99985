"""The moving average of the parameters, which is what is evaluated and saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Averager:
    """Exponential moving average of parameters.

    average <- average + (1 - d) (parameter - average), with d = min(decay, (1 + n) / (10 + n)) in
    update n = 0, 1, ...: the first values, far from the end, are forgotten soon.

    Args:
        parameters: the live tensors by name, which the optimizer changes in place.
        decay: weight of the past; None turns averaging off, and the average is the parameters.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float | None) -> None:
        self.decay = decay
        self.n_updates = 0
        self._live = {name: tensor.detach() for name, tensor in parameters.items()}
        self._averages = {} if decay is None else _copies(self._live)

    def update(self) -> None:
        """Move the averages towards the parameters; call it after each optimizer step."""
        n, self.n_updates = self.n_updates, self.n_updates + 1
        if self.decay is None:
            return
        decay = min(self.decay, (1 + n) / (10 + n))
        averages, live = list(self._averages.values()), list(self._live.values())
        torch._foreach_lerp_(averages, live, 1 - decay)

    def reset(self) -> None:
        """Start again from the parameters as they are now, for example after a rollback."""
        self.n_updates = 0
        self._averages = {} if self.decay is None else _copies(self._live)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name; they are live, copy them to keep them."""
        return dict(self._live if self.decay is None else self._averages)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors by dotted name, and JSON values."""
        averages = {f"average.{name}": tensor for name, tensor in self._averages.items()}
        return {"n_updates": self.n_updates, **averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError: an average is missing.
        """
        self.n_updates = int(state["n_updates"])
        for name, tensor in self._averages.items():
            tensor.copy_(state[f"average.{name}"])


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
