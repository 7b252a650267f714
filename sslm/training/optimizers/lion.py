"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an interpolated momentum, and one state instead of two."""

from typing import Any

from torch import Tensor

from sslm.training.optimizers.base import Optimizer


class Lion(Optimizer):
    """Every number of a weight moves by the learning rate, up or down: it wants a tenth of AdamW's rate."""

    name = "lion"

    def updated(
        self, parameter: Tensor, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        lr, (beta1, beta2), mean = group["lr"], group["betas"], state["exp_avg"]
        direction = mean.lerp(gradient, 1 - beta1).sign()
        decayed = weight * (1 - lr * group["weight_decay"])
        return decayed - lr * direction, {"exp_avg": mean.lerp(gradient, 1 - beta2)}
