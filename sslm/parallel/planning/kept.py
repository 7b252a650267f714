"""What one micro-batch's forward pass keeps for the backward pass, by where it arises."""

from dataclasses import dataclass
from typing import NamedTuple


class Kept(NamedTuple):
    """Bytes that one micro-batch's forward pass keeps, by where they arise; each counts in one place."""

    outside: float
    """In the model's body outside its blocks: embeddings, the last norm."""
    inputs: float
    """Inputs of blocks that are saved in any case."""
    repeated: float
    """Inputs of blocks that are kept only to run these again."""
    inside: float
    """In blocks."""
    largest: float
    """In the block that keeps most."""
    products: float
    """Outputs of matmuls and of attention in blocks."""
    compiled: float
    """In blocks, if these are compiled: the compiler computes what is cheap again."""
    head: float
    """In head and loss, if every place is scored."""


@dataclass(frozen=True)
class Activations:
    """`Kept` for any micro-batch size, with which it grows linearly."""

    one: Kept
    two: Kept
    has_head: bool
    """Whether it is known where the head begins, so that it gets the scored places alone."""

    def of(self, micro_batch_size: int) -> Kept:
        return Kept(*(a + (b - a) * (micro_batch_size - 1) for a, b in zip(self.one, self.two, strict=True)))
