"""Messages of a training step: each collective operation, the ranks that take part, its bytes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reducescatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "broadcast",
    "scatter": "scatter",
    "gather": "gather",
    "barrier": "barrier",
    "send": "send",
    "recv": "receive",
}
"""By what an operation's name begins with, without underscores."""


class Message(NamedTuple):
    """A collective operation, as one of its ranks sees it."""

    kind: str
    """Such as all-reduce."""
    ranks: tuple[int, ...]
    """All that take part."""
    num_bytes: int
    """Of the whole tensor: the output of an all-gather, the input of a reduce-scatter."""

    @property
    def sent(self) -> float:
        """Bytes that each rank sends if the ranks form a ring."""
        others = 1 - 1 / len(self.ranks)
        return self.num_bytes * {"all-reduce": 2 * others, "broadcast": 1.0, "send": 1.0}.get(self.kind, others)

    def crosses_nodes(self, devices: int) -> bool:
        """Whether its ranks lie on several nodes of so many devices."""
        return len({rank // devices for rank in self.ranks}) > 1


class Messages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the messages of this rank while it is entered, of real tensors and of those without contents."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.times = 1
        """How often each message counts that comes now."""
        self.counted: Counter[Message] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace in ("c10d", "_c10d_functional") and (kind := _kind(function.__name__)):
            given = [*args, *(kwargs or {}).values()]
            num_bytes = max(map(_bytes, [*given, result] if function.namespace == "_c10d_functional" else given))
            self.counted[Message(kind, next(_ranks(given)), num_bytes)] += self.times
        return result


def _kind(name: str) -> str | None:
    """Name the kind of an operation; None if it sends nothing, such as waiting.

    >>> _kind("_reduce_scatter_base_.default"), _kind("wait_tensor.default")
    ('reduce-scatter', None)
    """
    return next((kind for start, kind in KINDS.items() if name.replace("_", "").startswith(start)), None)


def _bytes(argument: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _ranks(arguments: list[Any]) -> Iterator[tuple[int, ...]]:
    """Yield the ranks of each argument that names a group."""
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            group = dist.ProcessGroup.unbox(argument)
            yield tuple(dist.get_process_group_ranks(group))
        elif isinstance(argument, str) and argument not in ("sum", "avg", "max", "min", "product"):
            find: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
            yield tuple(dist.get_process_group_ranks(find(argument)))
