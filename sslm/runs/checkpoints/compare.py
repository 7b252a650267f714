"""How two tensors on the disk differ, however they are cut into files."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from sslm.runs.checkpoints.shards import BITS, Stored


class TensorDifference(NamedTuple):
    """How a tensor's values differ in two checkpoints."""

    name: str
    num_elements: int
    num_different: int
    largest: float
    """Largest absolute difference; NaN if a NaN stands against a number."""
    magnitude: float
    """Largest absolute number in the first checkpoint."""


def compare_tensors(a: Stored, b: Stored, done: Callable[[int], None] = lambda num_bytes: None) -> TensorDifference:
    """Compare two tensors of one shape, block by block: bit by bit, or by value if their dtypes differ."""
    largest = magnitude = torch.zeros((), dtype=torch.float64)
    num_different = 0
    for begin, end in a.blocks():
        x, y = a.rows(begin, end), b.rows(begin, end)
        wide = torch.complex128 if x.is_complex() else torch.float64
        was, now = x.to(wide), y.to(wide)
        bits = BITS[x.element_size()]
        is_different = x.view(bits) != y.view(bits) if x.dtype == y.dtype else was != now
        magnitude = torch.maximum(magnitude, was.abs().max())
        if num := int(is_different.sum()):
            largest = torch.maximum(largest, (was - now)[is_different].abs().max())
            num_different += num
        done(x.nbytes)
    return TensorDifference(a.name, math.prod(a.shape), num_different, float(largest), float(magnitude))
