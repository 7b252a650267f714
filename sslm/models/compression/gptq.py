"""GPTQ: weights are rounded one input after another, and those of later inputs make up for it (Frantar et al. 2022,
arXiv:2210.17323).

Scales are those of rounding to the nearest, known beforehand, so inputs can be taken in any order: first those that
matter most, by their squares ("act-order" with static groups). What is 0 stays 0, so pruned weights stay pruned. What
layers read is that of the model as it was, from one pass.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

DAMPING = 0.01
"""Share of the inputs' mean square that is added to each: without it, what no token tells apart has no inverse."""
BLOCK = 128
"""Inputs after which the weights of all later ones are corrected: the same numbers, in larger products."""


@torch.no_grad()
def gptq(layer: Any, scales: Tensor, products: Tensor, num_bits: int) -> Tensor:
    """Round a layer's weights so that its outputs change little.

    Args:
        layer: a Linear or GPT-2's Conv1D; its weight is [rows, columns].
        scales: [rows, groups] of columns.
        products: [inputs, inputs] of what it reads, each input times each, summed over tokens.
        num_bits: at most 8.

    Returns:
        [rows, columns] whole numbers as int8.
    """
    weight = layer.weight
    steps = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    if isinstance(layer, Conv1D):
        return rounded_in_order(weight.T, steps.T, products, num_bits).T.contiguous()
    return rounded_in_order(weight, steps, products, num_bits)


def rounded_in_order(weight: Tensor, steps: Tensor, products: Tensor, num_bits: int) -> Tensor:
    """Round input after input, those of the largest squares first.

    Args:
        weight: [outputs, inputs].
        steps: [outputs, inputs] each weight's scale.
        products: [inputs, inputs].
        num_bits: at most 8.

    Returns:
        [outputs, inputs] whole numbers as int8.
    """
    half, num_inputs = 2 ** (num_bits - 1), len(products)
    order = products.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(products[order][:, order])
    left, steps = weight.double()[:, order], steps.double()[:, order]
    is_kept, numbers = left != 0, torch.empty_like(left)
    for first in range(0, num_inputs, BLOCK):
        stop = min(first + BLOCK, num_inputs)
        errors = torch.empty_like(left[:, first:stop])
        for at in range(first, stop):
            numbers[:, at] = (left[:, at] / steps[:, at]).round().clamp(-half, half - 1) * is_kept[:, at]
            error = (left[:, at] - numbers[:, at] * steps[:, at]) / factor[at, at]
            left[:, at:stop] -= error[:, None] * factor[at, at:stop]
            errors[:, at - first] = error
        left[:, stop:] -= errors @ factor[first:stop, stop:]
    return numbers[:, order.argsort()].to(torch.int8)


def inverse_factor(products: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of damped products, [inputs, inputs] in fp64.

    Its row i, from i on and over its first number, tells how weights make up for an error of input i, if those before
    are rounded already. Where nothing was read it is the identity, by which weights are rounded to the nearest.
    """
    damped = products.double()
    damping = DAMPING * damped.diagonal().mean().item() or 1.0
    damped = damped + damping * torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor
