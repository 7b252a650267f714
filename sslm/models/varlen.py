"""Attention that needs no mask: each document of a packed row is attended to by itself, told by where it begins.

Rows are joined into one sequence of tokens, and documents are stretches of it: their offsets are all that a kernel
needs (Dao 2023, arXiv:2307.08691). What belongs to other documents, and padding, costs nothing, where an explicit mask
has a number for each pair of tokens. On GPUs the kernel is torch's `varlen_attn` (FlashAttention-2) or that of the
package flash-attn; on CPUs each document goes through torch's SDPA.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

VARLEN, FLASH = "sslm_varlen", "sslm_fa2"
"""Names of attention implementations, as transformers' `set_attn_implementation` takes them. Neither says "flash":
architectures look for that word, and do more than call another function."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None, tuple[int, int]], Tensor]
"""([tokens, heads, head_dim] queries, keys, values, [documents + 1] offsets, longest document, scale, (tokens seen to
the left, to the right; -1 for all)) -> like the queries."""


class Documents:
    """Where documents begin in the rows that go through a model now, and while their gradients are computed."""

    offsets: Tensor
    """[documents + 1] int32: first token of each in the joined rows, then their number of tokens."""
    longest: int
    """Bound of a document's length: that of a row, so that compiled code has one number."""


DOCUMENTS = Documents()
"""One for the process: a backward pass, which may compute attention again, ends before the next forward pass."""


def takes_offsets(model: PreTrainedModel) -> bool:
    """Whether a model's attention is told where documents begin."""
    return model.config._attn_implementation in (VARLEN, FLASH)


def tell_documents(ids: Tensor, segments: Tensor | None, offsets: Tensor | None) -> None:
    """Say where documents begin in rows that a model is to read next.

    Args:
        ids: [batch, seq_len] the rows.
        segments: [batch, seq_len] changes from one document to the next, and to padding; None if a row is one document.
        offsets: as in `Documents`, if the host knows them; else it waits for the device to find them.
    """
    DOCUMENTS.longest = ids.shape[1]
    if offsets is not None:
        DOCUMENTS.offsets = offsets
    elif segments is None:
        DOCUMENTS.offsets = torch.arange(0, ids.numel() + 1, ids.shape[1], dtype=torch.int32, device=ids.device)
    else:
        DOCUMENTS.offsets = offsets_of(segments)


def offsets_of(segments: Tensor) -> Tensor:
    """Find where documents begin in joined rows: [batch, seq_len] -> [documents + 1].

    >>> offsets_of(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [0, 2, 3, 4, 8]
    """
    begins = segments != segments.roll(1, dims=1)
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    return F.pad(starts, (0, 1), value=segments.numel()).int()


def _attend(
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do: [batch, heads, seq_len, head_dim] -> [batch, seq_len, heads, …].

    Raises:
        ValueError: there is more to it than a window: a bias, a sink, a soft cap, dropout.
    """
    beside = {name for name in ("position_bias", "softcap", "s_aux") if more.get(name) is not None}
    if dropout or attention_mask is not None or beside or query.shape[2] != key.shape[2]:
        raise ValueError(f"attention by offsets takes no {', '.join(sorted(beside)) or 'mask, dropout or other text'}")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    left = -1 if sliding_window is None else sliding_window - 1
    window = left, 0 if is_causal else left
    width, missing = value.shape[-1], query.shape[-1] - value.shape[-1]
    if missing:  # kernels have one width for all three
        value = F.pad(value, (0, missing))
    joined = _joined(query), _joined(key), _joined(value)
    seen = kernel(*joined, DOCUMENTS.offsets, DOCUMENTS.longest, scaling, window)
    return seen[..., :width].reshape(query.shape[0], query.shape[2], query.shape[1], width), None


def _joined(states: Tensor) -> Tensor:
    """[batch, heads, seq_len, head_dim] -> [tokens, heads, head_dim], in the dtype in which matrices are multiplied."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return states.transpose(1, 2).flatten(0, 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def by_documents(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend within each document in turn: what GPUs' kernels compute, for CPUs; compiled code calls it as it is."""
    query, key, value = (states.transpose(0, 1)[None] for states in (query, key, value))
    how: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    seen = []
    for start, end in pairwise(offsets.tolist()):
        mask, here = _window_mask(end - start, window, query.device), slice(start, end)
        how |= {"attn_mask": mask, "is_causal": mask is None and window[1] == 0}
        seen.append(F.scaled_dot_product_attention(query[:, :, here], key[:, :, here], value[:, :, here], **how))
    return torch.cat(seen, dim=2)[0].transpose(0, 1)


def _window_mask(length: int, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """[length, length] what each token sees; None if nothing limits it but its own place."""
    left, right = window
    if left < 0 or left >= length - 1:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place
    return (distance <= left) & (distance >= -right)


def _by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    if query.device.type == "cpu":
        attended: Tensor = by_documents(query, key, value, offsets, scale, window)
        return attended
    return by_varlen_attn(query, key, value, offsets, longest, scale, window)


def by_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    """Attend with torch's kernel for GPUs: a `Kernel`."""
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # torch 2.11's has no grouped queries
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    seen = varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scale, window_size=window)
    assert isinstance(seen, Tensor)  # what else it could return, nobody asked for
    return seen


def _by_flash_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    flash_attn: Any = importlib.import_module("flash_attn")
    how = {"softmax_scale": scale, "causal": window[1] == 0, "window_size": window}
    seen: Tensor = flash_attn.flash_attn_varlen_func(query, key, value, offsets, offsets, longest, longest, **how)
    return seen


def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


ALL_ATTENTION_FUNCTIONS.register(VARLEN, partial(_attend, _by_torch))
ALL_ATTENTION_FUNCTIONS.register(FLASH, partial(_attend, _by_flash_attn))
