"""What a GPU's kernels keep for the backward pass, told where a CPU can't ask torch which kernel it would choose.

Fused attention keeps its inputs, its output and one number per row, as FlashAttention (Dao 2023, arXiv:2307.08691) and
the memory-efficient kernel do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sslm.parallel.planning.forward_record import ForwardRecord


class GpuKernels(TorchFunctionMode):
    """Keep what a GPU's kernels keep."""

    def __init__(self, record: ForwardRecord) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is torch.lstm:
            return _FusedLstm.over(*args)
        if function is F.dropout and (args[1:] or [kwargs.get("p", 0.5)])[0] and kwargs.get("training", True):
            return torch.native_dropout(args[0], 0.5, True)[0]  # keeps one byte per number
        return function(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
        if enable_gqa and query.dtype == torch.float32 and query.shape[1] != key.shape[1]:  # no fused kernel has that
            how = {"scale": scale, "enable_gqa": True}
            unfused: Any = torch.ops.aten._scaled_dot_product_attention_math
            return unfused(query, key, value, attn_mask, dropout_p, is_causal, **how)[0]  # type: ignore[no-any-return]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # the kernel adds numbers: another tensor in each block
            attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
        output: Tensor = _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
        self.record.note_anchors((query, key, value, attn_mask, output))
        if not dropout_p:  # with dropout it is computed again
            self.record.note_product(output)
        return output


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it
        of_rows = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, of_rows, mask)
        return output


class _FusedLstm(torch.autograd.Function):
    """Keep what cuDNN keeps beside its buffer: the sequence that comes in, the one that goes out, and the weights."""

    @staticmethod
    def over(inputs: Tensor, _: Any, weights: list[Tensor], *how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Stand in for `torch.lstm` with one layer in one direction."""
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            inputs, weights = inputs.to(dtype), [weight.to(dtype) for weight in weights]
        output: Tensor = _FusedLstm.apply(inputs, *weights)  # type: ignore[no-untyped-call]
        return output, output, output

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *weights: Tensor) -> Tensor:
        output = inputs.new_empty(*inputs.shape[:-1], weights[1].shape[1])
        ctx.save_for_backward(inputs, output, *weights)
        return output
