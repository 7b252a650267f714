"""Compile a model's blocks, and tell if the compiler gives one of them up."""

import inspect
import logging
import sys
from typing import Any

import torch
from torch import nn

from sslm.models.blocks import is_block
from sslm.system.terminal import say

USES = 3
"""What a block is compiled for, once each: training, validation, and a causal model's samples, which are few rows."""

GIVEN_UP = "torch._dynamo hit config."
"""How torch's line about it begins (torch/_dynamo/convert_frame.py)."""

_told: set[str] = set()


def compile_blocks(blocks: list[nn.Module]) -> None:
    """Compile each block with torch.compile, in place; those that are alike share what is compiled.

    Shapes are compiled in: they don't change in a run, but T5's encoder and decoder are of different lengths, for which
    torch would compile for any length, and give slower kernels. There is room for every variant that there can be; see
    docs/lessons.md, "All blocks are one piece of code".
    """
    config: Any = torch._dynamo.config
    config.recompile_limit += USES * len(blocks)
    how: dict[str, Any] = {"dynamic": False}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # since torch 2.13 each thread has a configuration of its own, and backward passes compute again in theirs
        how["recompile_limit"] = config.recompile_limit
    for block in blocks:
        block.compile(**how)
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_tell_of_given_up)


def _tell_of_given_up(record: logging.LogRecord) -> bool:
    """Say which block the compiler gives up, once, in the place of torch's line; a filter of its log."""
    if not (record.msg.startswith(GIVEN_UP) and isinstance(record.args, tuple)):
        return True
    name, (_, limit, _, reason, *_) = _running_block(), record.args
    if name is None:
        return True
    if name not in _told:
        _told.add(name)
        say(
            f"--compile: from here on {name} runs uncompiled now and then: torch keeps {limit} variants of a model's "
            f"blocks, and needs more. The last reason: {str(reason).strip()}. Type TORCH_LOGS=recompiles before the "
            "command to see what makes them differ; or leave out --compile",
            to_copy=True,
        )
    return False


def _running_block() -> str | None:
    """Name the kind of the block that this thread is in: the compiler works within its call."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if is_block(block := frame.f_locals.get("self")):
            return type(block).__name__
    return None
