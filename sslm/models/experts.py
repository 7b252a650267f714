"""Experts' matmuls under autocast, which knows nothing of grouped ones.

See docs/lessons.md, "Experts are multiplied in fp32 under autocast".
"""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers.integrations import moe


def cast_experts_under_autocast() -> None:
    """Let transformers' mixtures of experts multiply in autocast's dtype, in this process, whenever it is on."""
    if not isinstance(moe._grouped_mm, functools.partial):
        moe._grouped_mm = functools.partial(_cast_and_multiply, moe._grouped_mm)


def _cast_and_multiply(multiply: Any, tokens: Tensor, experts: Tensor, offs: Tensor) -> Tensor:
    """Multiply `tokens` [token of an expert, in], sorted by expert, by `experts` [expert, in, out]."""
    device = tokens.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tokens, experts = tokens.to(dtype), experts.to(dtype)
    product: Tensor = multiply(tokens, experts, offs)
    return product
