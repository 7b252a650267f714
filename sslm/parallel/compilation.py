"""What torch.compile takes as one piece: the whole network, or each block; and what it gives up is told."""

import inspect
import logging
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._symmetric_memory import enable_symm_mem_for_group
from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.parallel.launch import Compiled, Launch
from sslm.parallel.recompute import Recompute
from sslm.system.errors import UserError
from sslm.system.paths import caches
from sslm.system.terminal import say

WHOLE = 300e6
"""Parameters of the largest model that `auto` compiles as a whole: a larger one's blocks keep a GPU busy, and one of
them is compiled for all."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"

USES = 3
"""What a module is compiled for, once each: training, validation, and a causal model's samples, which are few rows."""

GIVEN_UP = "torch._dynamo hit config."
"""How torch's line about it begins (torch/_dynamo/convert_frame.py)."""

_told: set[str] = set()


def choose_compiled(launch: Launch, model: PreTrainedModel, recomputation: Recompute) -> Compiled:
    """Return what `--compile auto` means.

    On CPUs nothing: it gains less than it takes. On GPUs the whole network, if each of them holds it, it is small and
    nothing is computed again; else the blocks.
    """
    if launch.accelerator == "cpu" or why_not("block", launch, model, recomputation) is not None:
        return "off"
    is_small = model.num_parameters() <= WHOLE and recomputation.kind in ("none", "budget")
    return "model" if is_small and why_not("model", launch, model, recomputation) is None else "block"


def why_not(compiled: Compiled, launch: Launch, model: PreTrainedModel, recomputation: Recompute) -> str | None:
    """Say why a model can't be compiled so; None if it can be."""
    if compiled == "off":
        return None
    if model.config.model_type == "sslm_lstm":
        return "torch can't compile an LSTM; give off"
    if compiled == "block" and not blocks(model):
        return f"{model.config.model_type}'s layers can't be told apart; give model, or off"
    if launch.context_parallel_size > 1:
        return "has not been tried with --context_parallel_size; give off"
    if compiled == "model" and launch.num_stages > 1:
        return f"under --strategy {launch.strategy} no device has the model; give block"
    if launch.expert_parallel_size > 1:
        return "has not been tried with --expert_parallel_size; give off"
    if compiled == "model" and (launch.traits.shards_weights or launch.traits.zero_stage == 3):
        return f"--strategy {launch.strategy} gathers the weights of each block when it is called; give block"
    if compiled == "model" and recomputation.kind in ("selective", "full"):
        return f"--activation_checkpointing {recomputation} computes blocks again; give block"
    return None


def check_compiled(launch: Launch, model: PreTrainedModel, recomputation: Recompute) -> None:
    """Check that a model's blocks can be compiled and recomputed as asked for.

    Raises:
        UserError: they can't.
    """
    if recomputation.kind != "none" and not blocks(model):
        needs = "its layers can't be told apart, as --activation_checkpointing needs"
        raise UserError(f"--model.model_type {model.config.model_type}: {needs}; leave it out")
    if recomputation.kind == "budget" and launch.compiled == "off":
        what = "it is the compiler that keeps to a budget"
        raise UserError(f"--activation_checkpointing {recomputation}: {what}; add --compile block, or take selective")
    why = why_not(launch.compiled, launch, model, recomputation)
    if launch.is_async:
        why = why or _why_not_async(launch, model)
    if why is not None:
        raise UserError(f"--compile {'async_tp' if launch.is_async else launch.compiled}: {why}")


def _why_not_async(launch: Launch, model: PreTrainedModel) -> str | None:
    if launch.tensor_parallel_size == 1:
        return f"belongs to --strategy tp and fsdp_tp, this is {launch.strategy}; give block"
    if not launch.shares_places:
        return f"{model.config.model_type}'s blocks send whole rows between matrices; give block"
    if launch.accelerator != "gpu" or launch.tensor_parallel_size > launch.devices:
        return "the devices that share matrices are to be GPUs of one node; give block"
    return None


def compile_modules(modules: list[nn.Module], hides_messages_of: dist.ProcessGroup | None = None) -> None:
    """Compile each module with torch.compile, in place; those that are alike share what is compiled.

    Shapes are compiled in: they don't change in a run, but T5's encoder and decoder are of different lengths, for which
    torch would compile for any length, and give slower kernels. There is room for every variant that there can be; see
    docs/lessons.md, "All blocks are one piece of code". What is compiled is kept for later runs among sslm's caches,
    unless TORCHINDUCTOR_CACHE_DIR names a folder. torch's own place for it is a folder in /tmp whose name others can
    guess, and what is found there is unpickled.

    Args:
        modules: all of a kind.
        hides_messages_of: ranks of a node; matmuls that come before or after a message of theirs are cut in pieces,
            which are sent one after the other meanwhile.
    """
    _keep_compiled()
    config: Any = torch._dynamo.config
    config.recompile_limit += USES * len(modules)
    how: dict[str, Any] = {"dynamic": False}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # since torch 2.13 each thread has a configuration of its own, and backward passes compute again in theirs
        how["recompile_limit"] = config.recompile_limit
    if hides_messages_of is not None:
        enable_symm_mem_for_group(hides_messages_of.group_name)
        how["options"] = {"_micro_pipeline_tp": True}
    for module in modules:
        module.compile(**how)
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_tell_of_given_up)


def _keep_compiled() -> None:
    """Choose the folder of what is compiled, unless the user has."""
    from torch._inductor.runtime.cache_dir_utils import (
        default_cache_dir,
    )  # brings the compiler, if there is a use for it

    if os.environ.get(CACHE) not in (None, default_cache_dir()):  # torch sets its own, when it is imported
        return
    folder = caches() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        say(f"--compile: {folder}: {error.strerror}; what is compiled is kept in {default_cache_dir()}")
        return
    os.environ[CACHE] = str(folder)


def _tell_of_given_up(record: logging.LogRecord) -> bool:
    """Say which module the compiler gives up, once, in the place of torch's line; a filter of its log."""
    if not (record.msg.startswith(GIVEN_UP) and isinstance(record.args, tuple)):
        return True
    name, (_, limit, _, reason, *_) = _running_module(), record.args
    if name is None:
        return True
    if name not in _told:
        _told.add(name)
        say(
            f"--compile: from here on {name} runs uncompiled now and then: torch keeps {limit} variants of what is "
            f"compiled, and needs more. The last reason: {str(reason).strip()}. Type TORCH_LOGS=recompiles before the "
            "command to see what makes them differ; or give --compile off",
            to_copy=True,
        )
    return False


def _running_module() -> str | None:
    """Name the kind of the compiled module that this thread is in: the compiler works within its call."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module._compiled_call_impl is not None:
            return type(module).__name__
    return None
