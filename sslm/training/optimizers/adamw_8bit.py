"""AdamW with moments of 8 bits (Dettmers et al. 2022, arXiv:2110.02861): codes of a byte, a scale for each row."""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.placement import reduced_over

NUM_EXPONENTS = 7


def dynamic_codes(is_signed: bool) -> Tensor:
    """[256] the values that codes stand for, ascending: fractions of 1, finer near 0 (dynamic tree quantization).

    Each power of ten down to 1e-6 has values evenly between its tenth and itself, twice as many as the one below.

    >>> dynamic_codes(True).numel(), dynamic_codes(False).unique().numel()
    (256, 256)
    """
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(NUM_EXPONENTS):
        bounds = torch.linspace(0.1, 1, 2 ** (exponent + (not is_signed)) + 1, dtype=torch.float64)
        middles = 10.0 ** (exponent - NUM_EXPONENTS + 1) * (bounds[:-1] + bounds[1:]) / 2
        values += [middles, -middles] if is_signed else [middles]
    return torch.cat([part.double() for part in values]).sort().values.float()


class AdamW8bit(Optimizer):
    """A block of the paper is a row here, so that codes are the same however rows are shared among devices.

    Of the second moment the root is kept: it is never rounded to 0 where the first moment is not, which would make an
    update of any size. Vectors have their moments in fp32.
    """

    name = "adamw_8bit"

    def updated(
        self, parameter: Tensor, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        (beta1, beta2), step = group["betas"], state["step"].clamp(min=1)
        if is_coded := "exp_avg_scale" in state:
            mean = decoded(state["exp_avg"], state["exp_avg_scale"], is_signed=True)
            square = decoded(state["exp_avg_sq_root"], state["exp_avg_sq_root_scale"], is_signed=False).square()
        else:
            mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean, square = mean.lerp(gradient, 1 - beta1), square.lerp(gradient.square(), 1 - beta2)
        root = (square / (1 - beta2**step)).sqrt() + group["eps"]
        decayed = weight * (1 - group["lr"] * group["weight_decay"])
        weight = decayed - group["lr"] / (1 - beta1**step) * mean / root
        if not is_coded:
            return weight, {"exp_avg": mean, "exp_avg_sq": square}
        codes, scale = encoded(parameter, mean, is_signed=True)
        root_codes, root_scale = encoded(parameter, square.sqrt(), is_signed=False)
        states = {"exp_avg": codes, "exp_avg_scale": scale}
        return weight, states | {"exp_avg_sq_root": root_codes, "exp_avg_sq_root_scale": root_scale}


def encoded(parameter: Tensor, local: Tensor, is_signed: bool) -> tuple[Tensor, Tensor]:
    """Give each number the code of the nearest value, and each row its scale, its largest number.

    The code is looked up by the number in bf16, of which there are few; searching for each takes three times as long.
    """
    last = parameter.ndim - 1
    largest = local.abs().amax(last, keepdim=True) if local.numel() else local.new_zeros(*local.shape[:-1], 1)
    scale = reduced_over(parameter, largest, last, dist.ReduceOp.MAX)
    shares = (local / scale.clamp(min=torch.finfo(scale.dtype).tiny)).to(torch.bfloat16)
    return tables(local.device, is_signed)[1][shares.view(torch.int16).int() & 0xFFFF], scale


def decoded(codes: Tensor, scale: Tensor, is_signed: bool) -> Tensor:
    """Read numbers from their codes; rows whose scale is 0 are 0."""
    return tables(codes.device, is_signed)[0][codes.int()] * scale


@functools.cache
def tables(device: torch.device, is_signed: bool) -> tuple[Tensor, Tensor]:
    """Keep on a device [256] the values of codes, and [65536] the code of each bf16 number, by its bits."""
    values = dynamic_codes(is_signed)
    between = (values[:-1] + values[1:]) / 2
    numbers = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).float()
    return values.to(device), torch.bucketize(numbers, between).to(torch.uint8).to(device)
