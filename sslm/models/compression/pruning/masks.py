"""Masks: of scores, the highest stay."""

import math

import torch
from torch import Tensor


def highest(scores: Tensor, num_pruned: int) -> Tensor:
    """Mark all but the `num_pruned` lowest along the last dimension, of equal ones the first; exactly so many go.

    >>> highest(torch.tensor([[3.0, 1.0, 2.0, 1.0]]), 1)
    tensor([[ True,  True,  True, False]])
    """
    if num_pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(num_pruned, -1, keepdim=True).values
    above, equal = scores > limit, scores == limit
    missing = scores.shape[-1] - num_pruned - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= missing))


def number_pruned(sparsity: float, of: int) -> int:
    """How many of a number go, never all; 0.7 of 10 are 7, though 0.7 is a little less as a binary number.

    >>> number_pruned(0.7, 10), number_pruned(1 - 1e-12, 10)
    (7, 9)
    """
    return min(math.floor(sparsity * of + 1e-9), of - 1)


def matrix_mask(scores: Tensor, sparsity: float, within: int | None, by_row: bool) -> Tensor:
    """Mark the weights of a matrix that stay.

    Args:
        scores: [outputs, inputs].
        sparsity: share that goes; with `within`, the number of neighbours that is nearest to it: were it never larger,
            the second of 2:4 would go with the last stage only, and little time be left to do without it.
        within: number of neighbouring inputs among which so many go, which divides the inputs; None: among all.
        by_row: whether the weights of each output are compared among themselves only, as Wanda does.
    """
    compared = scores.reshape(-1, within) if within else scores if by_row else scores.reshape(1, -1)
    num_pruned = round(sparsity * within) if within else number_pruned(sparsity, compared.shape[-1])
    return highest(compared, num_pruned).reshape(scores.shape)
