"""Prepare a model: dtype, tensor parallelism, 8-bit matmuls, recomputation, compilation, sharding, in that order."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.models.network import Network
from sslm.parallel.compilation import compile_modules
from sslm.parallel.context_parallel import share_rows
from sslm.parallel.expert_parallel import share_experts
from sslm.parallel.float8 import in_8_bits, use_float8
from sslm.parallel.launch import Compiled, Scaling
from sslm.parallel.pipeline import Pipeline
from sslm.parallel.recompute import KEEP_ALL, Recompute, recompute
from sslm.parallel.sequence_parallel import styles_of_places
from sslm.parallel.tensor_parallel import share_matrices


def parallelize(
    network: Network,
    model: PreTrainedModel,
    mesh: DeviceMesh | None,
    *,
    replicas: int = 1,
    shares_rows: bool = False,
    shares_places: bool = False,
    expert_parallel_size: int = 1,
    is_pipeline: bool = False,
    reshard_after_forward: bool | int = True,
    prefetch: int | None = None,
    in_bf16: bool = False,
    computes_in_bf16: bool = False,
    float8: Scaling | None = None,
    compiled: Compiled = "off",
    is_async: bool = False,
    recomputation: Recompute = KEEP_ALL,
) -> None:
    """Change a network in place, block by block.

    Args:
        network: what is sharded; it holds `model`.
        mesh: the devices that share the weights, with dimensions `data_parallel` and `tensor_parallel`; None if
            each holds all weights.
        shares_rows: whether the devices of `tensor_parallel` share rows and not matrices.
        shares_places: whether devices that share matrices each have some places of every row between these.
        expert_parallel_size: devices that share each block's experts.
        is_pipeline: whether each of the devices of `tensor_parallel` has some of the blocks.
        replicas: groups of data-parallel devices that hold all of the weights among them (HSDP, Zhao et al. 2023,
            arXiv:2304.11277).
        reshard_after_forward: free a block's gathered weights between its forward and its backward pass; a number: keep
            them, shared by so many devices.
        prefetch: blocks whose weights are gathered while the one before is at work; None for FSDP2's own order.
        in_bf16: hold the weights in bfloat16; buffers (rotary frequencies), reductions and the loss stay in fp32.
        computes_in_bf16: gather fp32 weights as bfloat16. Autocast would cast those of matmuls anyway; embeddings and
            norms, and so what runs between blocks, are then in bfloat16 too.
        float8: how the blocks' linear layers, but the first's and the last's, are scaled to multiply in 8 bits; None:
            they multiply in a wider type.
        compiled: what torch.compile takes as one piece.
        is_async: whether what is compiled hides the messages of devices that share matrices (async TP).
        recomputation: what the blocks' backward passes compute again.
    """
    if in_bf16:
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if mesh is not None and is_pipeline:
        Pipeline(network, model, mesh["tensor_parallel"].get_group())
    elif mesh is not None and shares_rows:
        share_rows(network, model, mesh["tensor_parallel"].get_group())
    elif mesh is not None and mesh["tensor_parallel"].size() > 1:
        shared = mesh["tensor_parallel"]
        share_matrices(model, shared, styles_of_places(model, shared) if shares_places else {})
    if float8 is not None:
        for block in in_8_bits(blocks(model)):
            use_float8(block, float8)
    recompute(model, recomputation)
    if compiled != "off":
        group = mesh["tensor_parallel"].get_group() if mesh is not None and is_async else None
        compile_modules([network] if compiled == "model" else blocks(model), group)
    if mesh is not None and (shards := data_mesh(mesh, replicas, shares_rows)) is not None:
        gathered = torch.bfloat16 if computes_in_bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if expert_parallel_size > 1:
            freed = reshard_after_forward is not False
            share_experts(model, mesh, expert_parallel_size, replicas, reshard_after_forward=freed, mp_policy=policy)
        for block in blocks(model):
            fully_shard(block, mesh=shards, reshard_after_forward=reshard_after_forward, mp_policy=policy)
        # the backward pass begins with the root's weights
        fully_shard(network, mesh=shards, reshard_after_forward=False, mp_policy=policy)
        network.register_forward_hook(_forget_if_no_backward_pass_follows)
        if prefetch is not None:
            _gather_ahead(network, model, prefetch)


def shard_frozen(network: Network, model: PreTrainedModel, mesh: DeviceMesh, replicas: int = 1) -> None:
    """Share the weights of a model that is not trained; what is outside the blocks stays gathered after a pass."""
    shards = data_mesh(mesh, replicas)
    for block in blocks(model):
        fully_shard(block, mesh=shards)
    fully_shard(network, mesh=shards, reshard_after_forward=False)


def forget_gathered(network: nn.Module) -> None:
    """Drop the weights that FSDP keeps from one forward pass to the next."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _forget_if_no_backward_pass_follows(network: nn.Module, arguments: Any, output: Any) -> None:
    """Else what is kept for it would outlive the weights, which may be exchanged before the next forward pass."""
    if not torch.is_grad_enabled():
        forget_gathered(network)


def _gather_ahead(network: nn.Module, model: PreTrainedModel, number: int) -> None:
    """Let each block, and what is outside of them, begin to gather the weights of the next ones."""
    forward: list[Any] = [network, *blocks(model)]
    backward: list[Any] = [network, *reversed(blocks(model))]
    for place in range(len(forward)):
        forward[place].set_modules_to_forward_prefetch(forward[place + 1 : place + 1 + number])
        backward[place].set_modules_to_backward_prefetch(backward[place + 1 : place + 1 + number])


def data_mesh(mesh: DeviceMesh, replicas: int, shares_rows: bool = False) -> DeviceMesh | None:
    """Return the mesh that FSDP2 shards over, or None if tensor parallelism takes all devices."""
    devices = mesh.size() if shares_rows else mesh["data_parallel"].size()
    if devices == 1 and mesh["tensor_parallel"].size() > 1:
        return None
    if replicas == 1:
        return init_device_mesh(mesh.device_type, (devices,)) if shares_rows else mesh["data_parallel"]
    return init_device_mesh(mesh.device_type, (replicas, devices // replicas), mesh_dim_names=("replicate", "shard"))
