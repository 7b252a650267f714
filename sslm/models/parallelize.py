"""Activation checkpointing, then compilation, then sharding: in this order, block by block."""

import warnings

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that repeat, in order: what is compiled, recomputed and sharded as a unit."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def parallelize(
    network: nn.Module,
    model: PreTrainedModel,
    mesh: DeviceMesh | None,
    *,
    compile_blocks: bool = False,
    activation_checkpointing: str = "none",
) -> None:
    """Change `network` (which holds `model`) in place.

    Args:
        mesh: 1-D mesh of the devices that share the weights; None: not sharded.
        activation_checkpointing: none, or full (every block is recomputed in the backward pass).
    """
    if activation_checkpointing == "full":
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it gets another name in transformers 6
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if compile_blocks:
        for block in blocks(model):
            block.compile()
    if mesh is not None:
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
