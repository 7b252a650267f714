"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682): an average of the iterates, and no decaying rate."""

from typing import Any

import torch
from torch import Tensor, nn

from sslm.training.average import Average
from sslm.training.optimizers.base import Optimizer, wide
from sslm.training.optimizers.placement import distributed_like, here

TINY = 1e-30
"""Keeps the first step's weight defined where its rate is 0."""


class ScheduleFree(Optimizer):
    """Gradients are taken at y, between AdamW's iterates z and their average x: y = (1 - beta1) z + beta1 x.

    The model trains with y; x is what is validated and exported. x is not kept, but follows from y and z.
    """

    name = "schedule_free"

    @torch.no_grad()
    def make_states(self) -> None:
        new = [parameter for parameter in self.parameters() if not self.state[parameter]]
        super().make_states()
        for parameter in new:
            self.state[parameter]["z"].copy_(parameter)

    def updated(
        self, parameter: Tensor, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        lr, (beta1, beta2), z = group["lr"], group["betas"], state["z"]
        square = state["exp_avg_sq"].lerp(gradient.square(), 1 - beta2)
        root = (square / (1 - beta2 ** state["step"].clamp(min=1))).sqrt()
        x = averaged(weight, z, beta1)
        z = z - lr * (gradient / (root + group["eps"]) + group["weight_decay"] * weight)
        weight_sum = state["weight_sum"] + lr**2
        x = x.lerp(z, (lr**2 / weight_sum.clamp(min=TINY)).to(x.dtype))
        return x.lerp(z, 1 - beta1), {"z": z, "exp_avg_sq": square, "weight_sum": weight_sum}


def averaged(y: Tensor, z: Tensor, beta1: float) -> Tensor:
    """x, of which y = (1 - beta1) z + beta1 x.

    >>> averaged(torch.tensor(1.9), torch.tensor(1.0), 0.9)
    tensor(2.)
    """
    return y + (1 / beta1 - 1) * (y - z)


class ScheduleFreeAverage(Average):
    """The average of a schedule-free run, made whenever it is asked for.

    Args:
        weights: plain or DTensors, by name.
        trained: name -> parameter, of those that the optimizer trains.
    """

    def __init__(self, weights: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
        super().__init__(weights)
        self._optimizer, self._named, self._trained = optimizer, weights, trained

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: self._averaged(name, weight) for name, weight in self._named.items()}

    def _averaged(self, name: str, weight: Tensor) -> Tensor:
        y = wide(weight.detach())
        if name not in self._trained:
            return y
        parameter = self._trained[name]
        [beta1] = {group["betas"][0] for group in self._optimizer.param_groups}
        z = here(self._optimizer.state[parameter]["z"])
        return distributed_like(parameter, averaged(here(y), z, beta1))

    def update(self, withheld: Tensor | None = None) -> None:
        """Do nothing: the optimizer itself moves it."""

    def load(self, averages: dict[str, Tensor]) -> None:
        """Do nothing: it follows from the weights and the optimizer's states."""
