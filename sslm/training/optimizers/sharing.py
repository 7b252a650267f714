"""Work on whole matrices, shared among the ranks: each does some of them for all."""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def num_ranks() -> int:
    """Ranks that share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared_among_ranks(matrices: Iterable[Tensor], work: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield, in order, what becomes of each matrix; all ranks call it together, with the same matrices.

    A rank gathers all matrices, but keeps those that are its own; they are worked on in one batch. Results come back a
    round at a time, one of each rank, so that no rank holds all of them.

    Args:
        matrices: of one shape, plain (the same on all ranks) or DTensors of any placements.
        work: [number, rows, columns] to the same.

    Returns:
        Whole matrices.
    """
    world = num_ranks()
    rank = dist.get_rank() if world > 1 else 0
    mine, count = [], 0
    for matrix in matrices:
        whole = matrix.full_tensor() if isinstance(matrix, DTensor) else matrix
        if count % world == rank:
            mine.append(whole)
        count, like = count + 1, whole
    done = work(torch.stack(mine)).unbind() if mine else ()
    if world == 1:
        yield from done
        return
    for first in range(0, count, world):
        number = first // world
        own = done[number].contiguous() if number < len(done) else torch.zeros_like(like)
        round_ = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(round_, own)
        yield from round_[: count - first]
