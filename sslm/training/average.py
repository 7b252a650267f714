"""An average of the weights over the steps, which is often better than the last ones (Polyak & Juditsky 1992)."""

from typing import Any

import torch
from torch import Tensor, nn

from sslm.models.weights import local_part
from sslm.parallel.parallelize import forget_gathered


class Average:
    """Weights that are validated and exported instead of those that are trained.

    Args:
        weights: plain or DTensors, by name.
    """

    def __init__(self, weights: dict[str, Any]) -> None:
        self._weights = [local_part(weight) for weight in weights.values()]
        self._set_aside: list[Tensor] = []

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name -> average in fp32, distributed as the weight is."""
        raise NotImplementedError

    def update(self, withheld: Tensor | None = None) -> None:
        """Follow a step; not at all if `withheld`, a scalar on the device, is 1."""
        raise NotImplementedError

    def load(self, averages: dict[str, Tensor]) -> None:
        """Go on from averages by name."""
        raise NotImplementedError

    @torch.no_grad()
    def put_in(self, network: nn.Module) -> None:
        """Let the network have the averages, until `take_out`."""
        self._set_aside = [weight.clone() for weight in self._weights]
        for weight, average in zip(self._weights, self.tensors.values(), strict=True):
            weight.copy_(local_part(average))
        forget_gathered(network)

    @torch.no_grad()
    def take_out(self, network: nn.Module) -> None:
        for weight, before in zip(self._weights, self._set_aside, strict=True):
            weight.copy_(before)
        self._set_aside = []
        forget_gathered(network)


class MovingAverage(Average):
    """Exponential moving average a ← a + (1 − decay)·(w − a), in fp32, of this device's part of each weight.

    The weights are read again at each `update`.
    """

    def __init__(self, weights: dict[str, Any], decay: float) -> None:
        super().__init__(weights)
        self.decay = decay
        self._averages = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._averages

    @torch.no_grad()
    def update(self, withheld: Tensor | None = None) -> None:
        averages = [local_part(tensor) for tensor in self.tensors.values()]
        weights = [weight.float() for weight in self._weights]
        if withheld is None:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        else:  # in place, too: a difference would be as large as the weights
            torch._foreach_lerp_(averages, weights, [(1 - self.decay) * (1 - withheld)] * len(averages))

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        for name, average in self.tensors.items():
            average.copy_(averages[name])
