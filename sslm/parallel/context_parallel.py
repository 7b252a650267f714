"""Context parallelism: devices share each row of the batch, for rows that are too long for one.

A row is cut into twice as many pieces as there are devices, and each device has an early and a late one, so that all
have equally much to attend to. Everything but attention treats each place for itself. Attention gathers the keys and
values of the whole row, as Llama 3's training did (Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2). torch's
own ring attention has kernels for GPUs alone.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sslm.models.blocks import evaluating
from sslm.models.linear_cross_entropy import is_one_number
from sslm.models.network import Predicted
from sslm.models.probe import probe_tokens

ATTENTION = "sslm_context_parallel"
"""Name of our attention in transformers' table, which makes no masks for it."""

_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13's name
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def share_rows(network: nn.Module, model: PreTrainedModel, group: dist.ProcessGroup) -> None:
    """Let a causal network work on this rank's part of each row, in place; its results are those of whole rows."""
    shared = SharedRows(network.forward, group)
    AttentionInterface.register(ATTENTION, shared.attend)
    model.set_attn_implementation(ATTENTION)
    network.forward = shared


class SharedRows:
    """The forward pass of a network on this rank's part of each row.

    Without labels (samples) each rank works on whole rows.
    """

    def __init__(self, forward: Any, group: dist.ProcessGroup) -> None:
        self.forward, self.group = forward, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.is_on = False
        """Stays until the next forward pass: the backward pass may compute blocks again."""

    def __call__(self, labels: Tensor | None = None, *, predict: bool = False, **inputs: Tensor) -> Any:
        self.is_on = labels is not None
        if labels is None:
            return self.forward(predict=predict, **inputs)
        places = self._in_order(torch.arange(labels.shape[1], device=labels.device))
        parts = {name: whole[:, places[self.rank]] for name, whole in inputs.items()}
        positions = places[self.rank].expand(len(labels), -1)
        result = self.forward(labels[:, places[self.rank]], predict=predict, position_ids=positions, **parts)
        if not predict:
            return _Sum.apply(result, self.group)  # type: ignore[no-untyped-call]
        tokens = _Gather.apply(result.tokens, self.group)  # type: ignore[no-untyped-call]
        whole = torch.empty_like(labels).index_copy_(1, places.flatten(), tokens.transpose(0, 1).flatten(1))
        return Predicted(_Sum.apply(result.row_losses, self.group), whole)  # type: ignore[no-untyped-call]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **named: Any,
    ) -> tuple[Tensor, None]:
        """[batch, heads, part of the row, width] -> [batch, part of the row, heads, width]."""
        if not self.is_on:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **named
            )
        both = self._whole(torch.cat([key, value], dim=-1))
        keys, values = torch.split(both, [key.shape[-1], value.shape[-1]], dim=-1)
        outputs, length = [], query.shape[2] // 2
        for part, piece in zip(
            torch.split(query, length, dim=2), (self.rank, 2 * self.size - 1 - self.rank), strict=True
        ):
            end = (piece + 1) * length
            output = F.scaled_dot_product_attention(
                part,
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=_causal(length, end),
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            outputs.append(output)
        return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None

    def _in_order(self, places: Tensor) -> Tensor:
        """[length] -> [ranks, length / ranks] which places each rank has: an early and a late piece."""
        early, late = torch.split(places.view(2 * self.size, -1), self.size)
        return torch.cat([early, late.flip(0)], dim=1)

    def _whole(self, part: Tensor) -> Tensor:
        """[batch, heads, part of the row, width] -> [batch, heads, row, width]."""
        gathered = _Gather.apply(part, self.group)  # type: ignore[no-untyped-call]
        early, late = gathered.chunk(2, dim=3)
        return torch.cat([*early, *late.flip(0)], dim=2)


def _causal(length: int, end: int) -> Any:
    """Let the last places of a text attend to all before them, without a mask in memory where kernels need none."""
    with _disable_current_modes():  # selective recomputation, and tensors without contents, know no such tensor
        return causal_lower_right(length, end)


class _Gather(torch.autograd.Function):
    """[…] -> [ranks, …] of all ranks; its backward pass sums what they make of this rank's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = dist.get_world_size(group)
        whole = part.new_empty(size * part.shape[0], *part.shape[1:])
        _gather(whole, part.contiguous(), group=group)
        return whole.view(size, *part.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        part = gradient.new_empty(gradient.shape[1:])
        _reduce_scatter(part, gradient.flatten(0, 1).contiguous(), group=ctx.group)
        return part, None


class _Sum(torch.autograd.Function):
    """The sum over a group; each rank's gradient is that of all ranks' sums, whose mean over the ranks is taken."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.size = dist.get_world_size(group)
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if is_one_number(gradient):  # and stays one: the loss has its gradients already, but for a factor
            return (gradient[:1] * ctx.size).expand_as(gradient), None
        return gradient * ctx.size, None


@torch.no_grad()
def suits_shared_rows(model: PreTrainedModel) -> bool:
    """Whether only attention looks at other places, and that as far back as there are any; a model that can be run.

    With attention that gives nothing, what comes of a place must not depend on its neighbours.
    """
    seen: list[bool] = []

    def nothing(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
        seen.append(
            any(named.get(name) is not None for name in ("sliding_window", "softcap", "s_aux", "position_bias"))
        )
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    before = model.config._attn_implementation
    AttentionInterface.register(ATTENTION, nothing)
    ids = probe_tokens(model)
    places = torch.arange(ids.shape[1]).expand_as(ids)
    try:
        model.set_attn_implementation(ATTENTION)
        with evaluating(model):
            forth: Tensor = model(input_ids=ids, position_ids=places, use_cache=False).logits
            back: Tensor = model(input_ids=ids.flip(1), position_ids=places.flip(1), use_cache=False).logits
    except Exception:  # each architecture refuses in its own way
        return False
    finally:
        model.set_attn_implementation(before)
    return bool(seen) and not any(seen) and torch.allclose(forth.flip(1), back, rtol=1e-4, atol=1e-5)
