"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): second moments of a matrix from its rows and columns alone."""

from typing import Any

import torch
from torch import Tensor

from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.placement import reduced_over

DECAY_RATE = -0.8
"""Power of the step by which the running means forget: 1 - t^-0.8 is kept."""
SMALLEST_SQUARE, SMALLEST_SCALE = 1e-30, 1e-3
"""The paper's two epsilons: added to squared gradients, and the least size that a weight is taken to have."""
LARGEST_UPDATE = 1.0
"""Root mean square that updates are clipped to."""


class Adafactor(Optimizer):
    """The learning rate is relative to each weight's size, so a tensor whose numbers are small moves little."""

    name = "adafactor"

    def updated(
        self, parameter: Tensor, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        square, new = gradient.square() + SMALLEST_SQUARE, state["step"].clamp(min=1) ** DECAY_RATE
        if "exp_avg_sq" in state:
            second = state["exp_avg_sq"].lerp(square, new)
            states = {"exp_avg_sq": second}
        else:
            rows = state["exp_avg_sq_row"].lerp(mean_over(parameter, square, parameter.ndim - 1), new)
            columns = state["exp_avg_sq_col"].lerp(mean_over(parameter, square, parameter.ndim - 2), new)
            second = rows * columns / mean_over(parameter, rows, parameter.ndim - 2)
            states = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns}
        update = gradient * second.rsqrt()
        update /= (root_mean_square(parameter, update) / LARGEST_UPDATE).clamp(min=1)
        size = root_mean_square(parameter, weight).clamp(min=SMALLEST_SCALE)
        return weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * size * update, states


def mean_over(parameter: Tensor, local: Tensor, dim: int) -> Tensor:
    """Mean over one of a parameter's dimensions, which stays with a length of 1, of this device's part of a tensor."""
    return reduced_over(parameter, local.sum(dim, keepdim=True), dim) / parameter.shape[dim]


def root_mean_square(parameter: Tensor, local: Tensor) -> Tensor:
    """Of all numbers of a tensor that is shared as a parameter is, a scalar."""
    total = torch.linalg.vector_norm(local).square()
    return (reduced_over(parameter, total, None) / parameter.numel()).sqrt()
