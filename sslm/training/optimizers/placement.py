"""Tensors of which each device holds a part."""

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


def here(tensor: Tensor) -> Tensor:
    """This device's part of a tensor; without gradients there is nothing to detach it from."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_dims(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions of its mesh along which devices hold different parts of a tensor."""
    if not isinstance(tensor, DTensor):
        return ()
    return tuple(dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate())


def part(tensor: Tensor) -> list[int]:
    """Which part of a sharded tensor this device holds; devices that hold the same one say the same."""
    if not isinstance(tensor, DTensor):
        return []
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return [coordinate[dim] for dim in sharded_dims(tensor)]


def summed(gradient: Tensor) -> Tensor:
    """A gradient of which each device has a summand, summed."""
    if not isinstance(gradient, DTensor):
        return gradient
    return gradient.redistribute(placements=[Replicate() if p.is_partial() else p for p in gradient.placements])


def placed_like(parameter: Tensor, gradient: Tensor | None) -> Any:
    """A gradient, distributed as its parameter is."""
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def part_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """This device's part of a whole tensor, cut as a parameter is; without a source rank nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    return here(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


def distributed_like(parameter: Tensor, local: Tensor) -> Tensor:
    """A tensor of a parameter's shape, of which this device has a part."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def reduced_like(parameter: Tensor, local: Tensor, shape: tuple[int, ...], lacks: Collection[int]) -> Tensor:
    """A tensor of which this device has a part, cut as a parameter is but in the dimensions that it lacks."""
    if not isinstance(parameter, DTensor):
        return local
    placements = [
        Replicate() if getattr(placement, "dim", None) in lacks else placement for placement in parameter.placements
    ]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, parameter.device_mesh, placements, shape=torch.Size(shape), stride=stride)


def reduced_over(parameter: Tensor, value: Tensor, dim: int | None, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce what each device found over its part of a dimension, or of all, over the devices that share it; in place.

    Args:
        value: sum (or maximum) of this device's part, which is whole over the dimension afterwards.
        dim: 0 or above; None is all.
    """
    if isinstance(parameter, DTensor):
        for mesh_dim in sharded_dims(parameter):
            placement: Any = parameter.placements[mesh_dim]
            if dim is None or placement.dim == dim:
                dist.all_reduce(value, operation, group=parameter.device_mesh.get_group(mesh_dim))
    return value
