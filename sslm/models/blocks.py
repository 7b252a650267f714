"""Blocks: the layers of a model that repeat."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks(model: nn.Module) -> list[nn.Module]:
    """List a model's blocks in order; each is compiled, recomputed and sharded as a unit."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
