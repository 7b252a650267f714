"""States that each optimizer keeps of a weight: what checkpoints hold, and what plans count."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslm.models.blocks import blocks


class State(NamedTuple):
    """One tensor that an optimizer keeps of a weight."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns; experts of a mixture are many matrices."""
        return min(self.shape[-2:], default=0) > 1 and len(self.shape) > 1

    def lacking(self, dim: int) -> "State":
        """The same with one number instead of each row (-1) or column (-2)."""
        sizes = list(self.shape)
        sizes[dim] = 1
        return State(self.dtype, tuple(sizes))

    def nbytes(self, *shards: int) -> int:
        """Bytes on a device that holds a part; see `numel_of_part`."""
        return self.dtype.itemsize * numel_of_part(self.shape, *shards)


def numel_of_part(shape: Sequence[int], *shards: int) -> int:
    """Count the numbers on a device that holds a part of a tensor, whose first dimensions so many devices cut each.

    >>> numel_of_part((5, 4), 2), numel_of_part((4, 6), 4, 2), numel_of_part((), 2)
    (12, 3, 1)
    """
    return math.prod(-(-size // cut) for size, cut in zip_longest(shape, shards[: len(shape)], fillvalue=1))


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's states, as torch names them."""


def states_of(optimizer: str, weight: Tensor, is_hidden: bool) -> dict[str, State]:
    """Name the states of a weight, beside `step`, which every optimizer counts.

    Args:
        optimizer: its name, as in `--optim.name`.
        weight: of any kind; its shape and dtype matter.
        is_hidden: whether it is one of the `hidden_matrices`.
    """
    like = State(torch.promote_types(weight.dtype, torch.float32), tuple(weight.shape))
    if optimizer == "adafactor" and like.is_matrix:
        return {"exp_avg_sq_row": like.lacking(-1), "exp_avg_sq_col": like.lacking(-2)}
    if optimizer == "adafactor":
        return {"exp_avg_sq": like}
    if optimizer == "schedule_free":
        return {"z": like, "exp_avg_sq": like, "weight_sum": State(torch.float32, ())}
    if optimizer == "adamw_8bit" and like.is_matrix:
        codes, scale = State(torch.uint8, like.shape), like.lacking(-1)
        return {"exp_avg": codes, "exp_avg_scale": scale, "exp_avg_sq_root": codes, "exp_avg_sq_root_scale": scale}
    if optimizer == "lion":
        return {"exp_avg": like}
    if optimizer == "muon" and is_hidden:
        return {"momentum_buffer": like}
    return dict.fromkeys(MOMENTS, like)


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Matrices that map activations to activations: of the blocks, without embeddings (T5 has some in its blocks)."""
    return {
        parameter
        for block in blocks(model)
        for layer in block.modules()
        if not isinstance(layer, nn.Embedding)
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.ndim == 2 and "weight" in name
    }
