"""Every rank's value on every rank, as JSON: torch's own gathering of objects would unpickle them."""

import json
from typing import Any

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None
"""A group for CPU tensors (gloo), or None with one process."""


def gather_json(value: Any, group: Group) -> list[Any]:
    """Return every rank's value, anything that JSON can hold, in order of rank; all ranks call it together."""
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
