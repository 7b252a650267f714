"""Which kernel torch's SDPA takes for a model's attention on a device: asked beforehand, since torch does not tell."""

from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from sslm.models.document_check import probed_logits
from sslm.models.probe import probe_tokens
from sslm.system.terminal import say

NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN's",
    SDPBackend.FLASH_ATTENTION: "FlashAttention-2",
    SDPBackend.EFFICIENT_ATTENTION: "the memory-efficient one",
    SDPBackend.MATH: "none that is fused: matmuls and a softmax",
}
SLOW = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


class Call(NamedTuple):
    """What a model hands to SDPA."""

    heads: int
    key_heads: int
    head_dim: int
    value_dim: int
    mask: torch.dtype | None
    """Dtype of the mask, or None without one."""
    learns_mask: bool
    dropout: float
    is_causal: bool


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> None:
        sizes = query.shape[1], key.shape[1], query.shape[-1], value.shape[-1]
        mask = None if attn_mask is None else attn_mask.dtype
        learns_mask = attn_mask is not None and attn_mask.requires_grad
        self.made.append(Call(*sizes, mask, learns_mask, dropout_p, is_causal))


def sdpa_calls(model: PreTrainedModel, has_documents: bool) -> list[Call]:
    """List the different calls that a model in training makes; none if its attention is not SDPA's.

    Args:
        model: with weights; two of its layers are enough.
        has_documents: whether rows hold documents that are kept apart.
    """
    ids, was_training, calls = probe_tokens(model), model.training, _Calls()
    generator = torch.get_rng_state()
    try:
        with calls, suppress(Exception):  # a head may want more than tokens, when the calls have been made
            probed_logits(model.train(), ids, torch.zeros_like(ids) if has_documents else None)
    finally:
        model.train(was_training)
        torch.set_rng_state(generator)
    return list(dict.fromkeys(calls.made))


def kernel(call: Call, device: torch.device, dtype: torch.dtype, seq_len: int) -> SDPBackend:
    """Return what torch chooses for a call on a device, in rows of seq_len."""

    def states(heads: int, width: int) -> Tensor:
        return torch.empty(1, heads, seq_len, width, dtype=dtype, device=device, requires_grad=True)

    query, key = states(call.heads, call.head_dim), states(call.key_heads, call.head_dim)
    value = states(call.key_heads, call.value_dim)
    mask = None
    if call.mask is not None:
        kind = dtype if call.mask.is_floating_point else call.mask
        mask = torch.empty(1, 1, seq_len, seq_len, dtype=kind, device=device, requires_grad=call.learns_mask)
    grouped = call.heads != call.key_heads
    chosen = torch._fused_sdp_choice(query, key, value, mask, call.dropout, call.is_causal, enable_gqa=grouped)
    return SDPBackend(chosen)


def tell_kernels(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype, seq_len: int, has_documents: bool
) -> None:
    """Say which kernels a model's attention gets on a device; a warning says why, if they are slow.

    Args:
        model: as in `sdpa_calls`.
        device: where it is to be trained.
        dtype: in which matrices are multiplied there.
        seq_len: length of rows.
        has_documents: whether rows hold documents that are kept apart.
    """
    chosen = {call: kernel(call, device, dtype, seq_len) for call in sdpa_calls(model, has_documents)}
    if chosen:
        names = dict.fromkeys(NAMES.get(backend, backend.name) for backend in chosen.values())
        say(f"Attention's kernel: {' and '.join(names)}")
    slow = next((call for call, backend in chosen.items() if backend in SLOW), None)
    if slow is not None:
        say(f"Warning: attention does not get a fast kernel: {slow_because(slow, dtype)}")


def slow_because(call: Call, dtype: torch.dtype) -> str:
    """Say what of a call keeps it from the fast kernels, as torch's rules have it."""
    if dtype.itemsize != 2:
        return f"they multiply in bf16 or fp16, not in {str(dtype).removeprefix('torch.')}"
    if call.learns_mask:
        return "the mask is a learned bias, which has a gradient"
    if call.mask is not None:
        return "it has a mask; give --attention varlen or flex, if the model takes it"
    if max(call.head_dim, call.value_dim) > 256 or call.head_dim % 8:
        return f"head_dim is {call.head_dim}; multiples of 8 up to 128 or 256 are fast"
    return "torch has none for it on this device"
