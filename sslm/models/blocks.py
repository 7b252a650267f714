"""What every model of transformers has: blocks, the layers that repeat, and a mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks(model: nn.Module) -> list[nn.Module]:
    """List a model's blocks in order; each is compiled, recomputed and sharded as a unit."""
    return [module for module in model.modules() if is_block(module)]


def stacks(model: nn.Module) -> list[nn.ModuleList]:
    """List the stacks that a model's blocks stand in: one, or an encoder's and a decoder's."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [some for some in lists if len(some) and all(map(is_block, some))]


def is_block(thing: object) -> bool:
    return isinstance(thing, GradientCheckpointingLayer)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into its own."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
