"""Every rank's value on every rank, as JSON: torch's own gathering of objects would unpickle them."""

import json
from typing import Any

import torch
import torch.distributed as dist


def gather_json(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Give every rank's value to every rank; all ranks call it together.

    Args:
        value: anything that JSON can hold.
        group: a group for CPU tensors (gloo), or None with one process.

    Returns:
        The values of all ranks, in order of rank.
    """
    if group is None:
        return [value]
    text = json.dumps(value).encode()
    sizes = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor(len(text)), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
    texts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, padded, group=group)
    return [json.loads(text.numpy().tobytes()) for text in texts]
