"""The weights' type, activation checkpointing, compilation, sharding: in this order, block by block."""

import warnings

import torch
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
    in_bf16: bool = False,
    compile_blocks: bool = False,
    activation_checkpointing: str = "none",
) -> None:
    """Change `network` (which holds `model`) in place.

    Args:
        mesh: 1-D mesh of the devices that share the weights; None: not sharded.
        in_bf16: hold the weights in bfloat16; buffers (rotary frequencies) and the loss stay in fp32.
        activation_checkpointing: none, or full (every block is recomputed in the backward pass).
    """
    if in_bf16:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
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
