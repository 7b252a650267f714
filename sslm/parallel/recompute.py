"""Activation checkpointing: activations are kept for the backward pass, or computed again (Chen et al. 2016,
arXiv:1604.06174)."""

import functools
import warnings
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
import torch._functorch.config as functorch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from sslm.models.blocks import blocks, is_block
from sslm.system.errors import UserError

_aten = torch.ops.aten
_NAMES = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_mm", "_scaled_grouped_mm")
MATMULS = {getattr(_aten, name).default for name in _NAMES}
ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_fused_attention_overrideable.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


class Recompute(NamedTuple):
    """What a block's backward pass computes again; see `recompute`."""

    kind: Literal["none", "selective", "full", "budget"] = "none"
    budget: float = 1.0
    """Fraction of a block's activations that the compiler may keep."""

    def __str__(self) -> str:
        return f"budget:{self.budget:g}" if self.kind == "budget" else self.kind


KEEP_ALL = Recompute()


def parse_recompute(text: str) -> Recompute:
    """Parse `--activation_checkpointing`.

    Args:
        text: none, selective, full, or budget:SHARE.

    Raises:
        UserError: it is none of these.

    >>> parse_recompute("budget:0.5")
    Recompute(kind='budget', budget=0.5)
    """
    for kind in ("none", "selective", "full"):
        if text == kind:
            return Recompute(kind)
    budget = 0.0
    with suppress(ValueError):
        budget = float(text.removeprefix("budget:")) if text.startswith("budget:") else 0.0
    if not 0 < budget < 1:
        expected = "none, selective, full, or budget:SHARE with a share between 0 and 1, such as budget:0.5"
        raise UserError(f"--activation_checkpointing {text}: expected {expected}")
    return Recompute("budget", budget)


def recompute(model: PreTrainedModel, how: Recompute) -> None:
    """Let each block of the model compute activations again in the backward pass, in place.

    none keeps all of them. selective keeps the results of matmuls and of attention, and computes cheap operations
    (norms, activation functions, dropout) again. full keeps a block's input alone. A budget leaves the choice to the
    compiler: it keeps at most that fraction, and computes again what is cheapest. Nothing must have been compiled yet.
    See docs/lessons.md, "The recompute budget belongs to the process" and "Recomputed T5 wants a gradient of nothing".
    """
    functorch.activation_memory_budget = how.budget
    if how.kind not in ("selective", "full"):
        return
    how_exactly: dict[str, Any] = {"use_reentrant": False}
    if how.kind == "selective":
        how_exactly["context_fn"] = functools.partial(create_selective_checkpoint_contexts, keep)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it gets another name in transformers 6
        model.gradient_checkpointing_enable(how_exactly)
    for block in blocks(model):
        for part in block.modules():
            if not is_block(part) and getattr(part, "gradient_checkpointing", False):
                part.gradient_checkpointing = False  # type: ignore[assignment]


def keep(context: Any, op: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Tell selective checkpointing whether to keep an operation's result.

    Attention with dropout is computed again. See docs/lessons.md, "Kept attention draws no dropout when recomputed".
    """
    kept = op in MATMULS or (op in ATTENTION and not _dropout(op, arguments, named))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _dropout(op: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> float:
    """Return the dropout that an attention kernel was called with."""
    names = [argument.name for argument in op._schema.arguments] if hasattr(op, "_schema") else []
    given = dict(zip(names, arguments, strict=False)) | named
    return float(given.get("dropout_p", 0.0))
