"""The norm of the whole gradient, and what it is divided by; the optimizer itself clips, in its update."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from sslm.training.optimizers.placement import here, sharded_dims, summed


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor], others: dist.ProcessGroup | None = None) -> Tensor:
    """Global norm of the gradients, of the whole model; all ranks call it together.

    Args:
        parameters: plain tensors or DTensors of any meshes; what is plain or replicated is the same on all ranks.
        others: ranks each of which has other parameters; None: all have the same.

    Returns:
        A scalar of at least fp32; nothing waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    shared: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in map(summed, gradients):
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        shared.setdefault((mesh, sharded_dims(gradient)), []).append(here(gradient))
    total = torch.zeros((), dtype=wide, device=gradients[0].device)
    for (mesh, dims), tensors in shared.items():
        squares = torch.stack(torch._foreach_norm(tensors, 2, dtype=wide)).square().sum()
        for dim in dims:
            assert mesh is not None
            dist.all_reduce(squares, group=mesh.get_group(dim))
        total += squares
    if others is not None:
        dist.all_reduce(total, group=others)
    return total.sqrt()


def clipping_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are divided by, so that it is at most `max_norm`; a scalar of at least 1.

    >>> clipping_scale(torch.tensor(3.0), 1.5).item(), clipping_scale(torch.tensor(1.0), 1.5).item()
    (2.0, 1.0)
    """
    return (norm.float() / max_norm).clamp(min=1.0)
