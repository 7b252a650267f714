"""Layers that pass on what they read: what a layer that is pruned as a whole does, whatever its norms and biases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def skip_unless(block: nn.Module, is_kept: Callable[[], Tensor | None]) -> None:
    """Let a block's output be its input unless it is kept.

    Args:
        block: its output is of its input's shape, or a tuple that begins with such.
        is_kept: asked in each forward pass: a bool on the block's device, a scalar; None is no.
    """

    def choose(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        read = arguments[0] if arguments else named["hidden_states"]
        wrote, kept = output[0] if isinstance(output, tuple) else output, is_kept()
        passed = read if kept is None else torch.where(kept, wrote, read)
        return (passed, *output[1:]) if isinstance(output, tuple) else passed

    block.register_forward_hook(choose, with_kwargs=True)
