"""FlashAttention-2 over documents in plain torch: what torch's CUDA kernels of that name compute, for devices without.

Forward and backward pass are those of Dao et al. 2022 (arXiv:2205.14135), appendix B, without tiles.
"""

from typing import Any

import torch
from torch import Tensor


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    key_offsets: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    return_debug_mask: bool,
    **more: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[tokens, heads, head_dim] states -> like the queries, [heads, tokens] log of each softmax's denominator, …"""
    scores = _scores(query, key, offsets, is_causal, more)
    lse, nothing = scores.logsumexp(-1), query.new_empty(0)
    seen = torch.einsum("hqk,khd->qhd", (scores - lse[..., None]).exp(), value.float())
    return torch.empty_like(query).copy_(seen), lse, nothing, nothing, nothing


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    lse: Tensor,
    offsets: Tensor,
    key_offsets: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    *of_dropout: Tensor,
    **more: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    share = (_scores(query, key, offsets, is_causal, more) - lse[..., None]).exp()
    grad, seen = grad.float(), seen.float()
    of_share = torch.einsum("qhd,khd->hqk", grad, value.float()) - (grad * seen).sum(-1).T[..., None]
    of_scores = share * of_share * _scale(query, more)
    found = (
        torch.einsum("hqk,khd->qhd", of_scores, key.float()),
        torch.einsum("hqk,qhd->khd", of_scores, query.float()),
        torch.einsum("hqk,qhd->khd", share, grad),
    )
    of_query, of_key, of_value = (torch.empty_like(query).copy_(tensor) for tensor in found)
    return of_query, of_key, of_value


def _scores(query: Tensor, key: Tensor, offsets: Tensor, is_causal: bool, more: dict[str, Any]) -> Tensor:
    """[heads, tokens, tokens], −∞ for what a token does not see."""
    place = torch.arange(len(query), device=query.device, dtype=offsets.dtype)
    document = torch.searchsorted(offsets, place, right=True)
    distance = place[:, None] - place
    left, right = more.get("window_size_left"), 0 if is_causal else more.get("window_size_right")
    seen = document[:, None] == document
    if left is not None and left >= 0:
        seen = seen & (distance <= left)
    if right is not None and right >= 0:
        seen = seen & (distance >= -right)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * _scale(query, more)
    return scores.masked_fill(~seen, -torch.inf)


def _scale(query: Tensor, more: dict[str, Any]) -> float:
    scale = more.get("scale")
    return query.shape[-1] ** -0.5 if scale is None else float(scale)
