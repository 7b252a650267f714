"""Weights in bf16: rounded stochastically, with the right mean."""

import torch
from torch import Tensor


def rounded_to_bf16(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round fp32 values to one of the two bf16 values around each, with the right mean; NaN and infinity stay.

    The lower half of an fp32 is what bf16 lacks: it is carried over with chance (lower half) / 65536.
    """
    bits = values.view(torch.int32)
    drawn = torch.empty_like(bits).random_(0, 1 << 16, generator=generator)
    rounded = drawn.add_(bits).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)  # a NaN's carry may reach its sign: -0
