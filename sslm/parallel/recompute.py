"""Activation checkpointing: what the backward pass needs is kept, or computed again (Chen et al. 2016, arXiv:1604.06174)."""

import functools
import warnings
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from sslm.system.errors import UserError

_aten = torch.ops.aten
MATMULS = {
    op.default
    for op in (
        _aten.mm,
        _aten.addmm,
        _aten.bmm,
        _aten.baddbmm,
        _aten._grouped_mm,
        _aten._scaled_mm,
        _aten._scaled_grouped_mm,
    )
}
ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_fused_attention_overrideable.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def check_recompute(how: str, *, compile_blocks: bool) -> None:
    """Refuse what is no way to recompute.

    Args:
        how: none, selective, full, or budget:SHARE.

    Raises:
        UserError: it is none of these, or a budget without the compiler, which alone can keep to it.
    """
    if how in ("none", "selective", "full"):
        return
    if not 0 < _share(how) < 1:
        raise UserError(
            f"--activation_checkpointing {how}: expected none, selective, full, or budget:SHARE with a share between 0 "
            f"and 1, such as budget:0.5"
        )
    if not compile_blocks:
        raise UserError(
            f"--activation_checkpointing {how}: it is the compiler that keeps to a budget; add --compile true, or take "
            f"selective"
        )


def recompute(model: PreTrainedModel, how: str) -> None:
    """Let each block of the model compute its activations again in the backward pass, in place.

    none keeps all of them; selective keeps the results of matmuls and of attention, and computes what is cheap (norms,
    activation functions, dropout) again; full keeps what goes into a block alone. budget:SHARE leaves the choice to the
    compiler, block by block: it keeps at most that share of what it would keep otherwise, and computes again what is cheapest.

    The budget is a setting of torch for the whole process: it holds for all that is compiled from here on, and the other ways
    set it back. Model's blocks must not have been compiled yet.
    """
    import torch._functorch.config as functorch

    functorch.activation_memory_budget = _share(how) if how.startswith("budget:") else 1.0
    if how not in ("selective", "full"):
        return
    how_exactly: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        how_exactly["context_fn"] = functools.partial(create_selective_checkpoint_contexts, keep)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it gets another name in transformers 6
        model.gradient_checkpointing_enable(how_exactly)


def keep(context: Any, op: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Whether selective checkpointing keeps what an operation gives.

    Attention with dropout is computed again: were its result kept, it would not draw, and all dropout after it in its block
    would draw other numbers than in the forward pass.
    """
    kept = op in MATMULS or (op in ATTENTION and not _dropout(op, arguments, named))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _dropout(op: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> float:
    """The dropout that an attention kernel was called with."""
    names = [argument.name for argument in op._schema.arguments] if hasattr(op, "_schema") else []
    given = dict(zip(names, arguments, strict=False)) | named
    return float(given.get("dropout_p", 0.0))


def _share(how: str) -> float:
    """SHARE of budget:SHARE; 0: it isn't that."""
    kind, _, share = how.partition(":")
    try:
        return float(share) if kind == "budget" else 0.0
    except ValueError:
        return 0.0
