"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

from typing import Any

import torch
from torch import Tensor

from sslm.runs.checkpoints.optimizer_states import MOMENTS
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.placement import here, placed_like
from sslm.training.optimizers.rounding import rounded_to_bf16

PIECE = 1 << 24
"""Elements of a bf16 weight that are updated at a time: each takes about 20 bytes of passing memory."""


class AdamW(Optimizer):
    """AdamW by torch's fused kernel, on CPUs too; the kernel itself clips, and leaves updates out."""

    name = "adamw"

    def update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        self._update([p for p in members if p.dtype != torch.bfloat16], group)
        for parameter in members:
            if parameter.dtype == torch.bfloat16:
                self._update_and_round(parameter, group)

    def _update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [here(placed_like(parameter, parameter.grad)) for parameter in members]
        states = [self.state[parameter] for parameter in members]
        moments = [[here(state[name]) for state in states] for name in MOMENTS]
        steps = [state["step"] for state in states]
        self._call_kernel([here(parameter) for parameter in members], gradients, moments, steps, group)

    def _update_and_round(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, generator = self.state[parameter], self.generator(parameter)
        tensors = (parameter, placed_like(parameter, parameter.grad), *(state[name] for name in MOMENTS))
        for weight, gradient, mean, square in zip(*map(pieces, tensors), strict=True):
            updated = weight.float().contiguous()
            self._call_kernel([updated], [gradient.float().contiguous()], [[mean], [square]], [state["step"]], group)
            weight.copy_(rounded_to_bf16(updated, generator))

    def _call_kernel(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update tensors of this device in place."""
        if not weights:
            return
        torch._fused_adamw_(
            weights,
            gradients,
            moments[0],
            moments[1],
            [],
            steps,
            amsgrad=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            grad_scale=self.grad_scale,
            found_inf=self.left_out,
        )


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """This device's part of a tensor, cut along its first dimension; views."""
    local = here(tensor)
    local = local if local.ndim else local[None]
    cut: tuple[Tensor, ...] = torch.split(local, max(PIECE * len(local) // max(local.numel(), 1), 1))
    return cut
