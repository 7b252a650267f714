"""Cross-entropy of a linear layer's outputs that never holds the outputs of all tokens.

A few tokens at a time go through the layer, and their part of the gradients is computed at once, in the forward pass:
the logits, [tokens, classes], are made once, as without this, and are gone when the next tokens' are made. It takes
torch alone, as F.linear_cross_entropy (torch 2.13) does, which has no z-loss, no soft cap and no classes that devices
share; `benchmarks/loss.py` has both beside each other. The idea is that of Hsu et al. 2024, arXiv:2410.10989 (Liger).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslm.models.network import IGNORED

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits that are made at a time, by type of device: they fit into a CPU's cache, and keep a GPU busy."""
FEWEST_TOKENS = 512
"""Tokens at a time, whatever the number of classes: with fewer, adding to the weight's gradient takes the time."""


class Loss(NamedTuple):
    """What is made of a linear layer's outputs."""

    num_classes: int
    """The first so many outputs are logits, the others are padding."""
    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    z_loss: float = 0.0
    """Weight of log² of the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311)."""
    scale: float = 1.0
    """What outputs are multiplied by."""
    soft_cap: float | None = None
    """c of c · tanh(output / c) (Gemma Team 2024, arXiv:2408.00118)."""
    group: dist.ProcessGroup | None = None
    """Devices that share the classes in equal parts, by rank; None if this one has all."""


class LinearLosses(NamedTuple):
    """What `linear_cross_entropy` returns."""

    rows: Tensor
    """[rows] summed losses in nats, at least fp32."""
    tokens: Tensor
    """[rows, places] the likeliest class at each scored place, IGNORED elsewhere; no gradient."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, loss: Loss
) -> LinearLosses:
    """Sum each row's cross-entropy of `hidden @ weight.T + bias`.

    Args:
        hidden: [rows, places, width]; under autocast products are in its dtype.
        weight: [classes, width], of `loss.group` this device's classes.
        bias: [classes], or None.
        targets: [rows, places] a class each, or IGNORED.
    """
    needs = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias))
    made = _LinearCrossEntropy.apply(hidden, weight, bias, targets, loss, needs)  # type: ignore[no-untyped-call]
    return LinearLosses(*made)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss: Loss,
        needs: tuple[bool, bool, bool],
    ) -> Any:
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.loss, ctx.needs, ctx.are_used = loss, needs, False
        ctx.set_materialize_grads(False)
        with torch.autocast(kind, enabled=False):
            made = _run(hidden, weight, bias, targets, loss, ctx.dtype, needs)
        ctx.save_for_backward(hidden, weight, bias, targets, *made.gradients)
        ctx.mark_non_differentiable(made.tokens)
        return made.rows, made.tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor | None, _: Any) -> Any:
        """Scale the gradients that the forward pass has made, if all rows' losses count alike; else make them again."""
        if of_rows is None:
            return (None,) * 6
        hidden, weight, bias, targets, *gradients = ctx.saved_tensors
        if is_one_number(of_rows) and not ctx.are_used:
            ctx.are_used = True
            gradients = [g if g is None else g.mul_(of_rows[0]) for g in gradients]
        else:
            with torch.autocast(of_rows.device.type, enabled=False):
                gradients = _run(hidden, weight, bias, targets, ctx.loss, ctx.dtype, ctx.needs, of_rows).gradients
        like = hidden, weight, bias
        return *(g if g is None else g.to(x.dtype) for g, x in zip(gradients, like, strict=True)), None, None, None


def is_one_number(gradient: Tensor) -> bool:
    """Whether [rows] hold one number, which the host can tell: that of a sum's or a mean's backward pass, expanded.

    >>> is_one_number(torch.tensor(2.0).expand(3)), is_one_number(torch.ones(3))
    (True, False)
    """
    return len(gradient) == 1 or gradient.stride() == (0,)


class _Run(NamedTuple):
    rows: Tensor
    tokens: Tensor
    gradients: list[Tensor | None]
    """Of hidden states, weight and bias; None of what needs none."""


@torch.no_grad()
def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    loss: Loss,
    dtype: torch.dtype,
    needs: tuple[bool, ...],
    of_rows: Tensor | None = None,
) -> _Run:
    """Make losses, predictions and gradients, some tokens at a time.

    Args:
        dtype: of the products.
        needs: which of hidden states, weight and bias need a gradient.
        of_rows: [rows] what each row's gradient is multiplied by; None: 1.
    """
    wide = torch.promote_types(dtype, torch.float32)
    classes = _Classes.of(weight, loss)
    states, flat, matrix = hidden.flatten(0, 1).to(dtype), targets.flatten(), weight.to(dtype)[: classes.num]
    added = None if bias is None else bias.to(dtype)[: classes.num]
    factors = None if of_rows is None else of_rows.to(wide).repeat_interleave(targets.shape[1])
    of_states = torch.empty_like(states) if needs[0] else None
    of_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
    of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
    losses, tokens = torch.empty_like(flat, dtype=wide), torch.empty_like(flat)
    size = tokens_at_a_time(len(flat), classes.num, hidden.device.type)
    for start in range(0, len(flat), size):
        here = slice(start, start + size)
        outputs = F.linear(states[here], matrix, added).to(wide)
        found = _chunk(outputs, flat[here], loss, classes, None if factors is None else factors[here])
        losses[here], tokens[here] = found.losses, found.tokens
        if of_bias is not None:
            of_bias[: classes.num] += found.gradient.sum(0)
        of_outputs = found.gradient.to(dtype)
        if of_states is not None:
            torch.mm(of_outputs, matrix, out=of_states[here])
        if of_weight is not None:
            _add_product(of_weight[: classes.num], of_outputs.T, states[here])
        del outputs, found, of_outputs  # before the next are made
    if loss.group is not None and of_states is not None:
        dist.all_reduce(of_states, group=loss.group)
    gradients = [None if of_states is None else of_states.view_as(hidden), of_weight, of_bias]
    return _Run(losses.view_as(targets).sum(1), tokens.view_as(targets), gradients)


def are_few(num_tokens: int, num_classes: int, device_type: str) -> bool:
    """Whether all logits may be there at once: then the plain loss, of fewer and larger operations, is faster."""
    return num_tokens * num_classes <= CHUNK["cpu" if device_type == "cpu" else "cuda"]


def tokens_at_a_time(num_tokens: int, num_classes: int, device_type: str) -> int:
    """Return the tokens whose logits are made at a time; all parts are of one length, but for the last."""
    most = max(CHUNK["cpu" if device_type == "cpu" else "cuda"] // num_classes, FEWEST_TOKENS)
    return math.ceil(num_tokens / max(math.ceil(num_tokens / most), 1))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; in 16 bits the product alone is rounded."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


class _Classes(NamedTuple):
    """The classes that this device has, of all that there are."""

    first: int
    num: int

    @classmethod
    def of(cls, weight: Tensor, loss: Loss) -> "_Classes":
        first = 0 if loss.group is None else dist.get_rank(loss.group) * len(weight)
        return cls(first, max(min(loss.num_classes - first, len(weight)), 0))


class _Chunk(NamedTuple):
    losses: Tensor
    """[tokens]"""
    tokens: Tensor
    """[tokens] the likeliest class."""
    gradient: Tensor
    """[tokens, classes] of the outputs."""


def _chunk(outputs: Tensor, targets: Tensor, loss: Loss, classes: _Classes, factors: Tensor | None) -> _Chunk:
    """Losses and the gradient of a linear layer's outputs.

    With logits x, z = log Σ exp x, and smoothing ε over C classes, a token's loss is
    (1 − ε)·(z − x_target) + ε·(z − Σ x / C) + z_loss·z², whose gradient is
    (1 + 2·z_loss·z)·softmax(x) − ε / C − (1 − ε)·[target].

    Args:
        outputs: [tokens, this device's classes]; changed in place.
        targets: [tokens]
        factors: [tokens] what each token's gradient is multiplied by; None: 1.
    """
    logits = outputs if loss.scale == 1.0 else outputs.mul_(loss.scale)
    bend = None
    if loss.soft_cap is not None:
        bend = logits.div_(loss.soft_cap).tanh_().square().neg_().add_(1.0)
        logits = logits.mul_(loss.soft_cap)
    is_scored, eps = targets != IGNORED, loss.label_smoothing
    local = targets - classes.first
    is_here = is_scored & (local >= 0) & (local < classes.num)
    place = torch.where(is_here, local, 0)[:, None]
    highest, likeliest = _highest(logits, loss, classes)
    of_target = _summed(torch.where(is_here, logits.gather(1, place)[:, 0], 0.0), loss)
    mean = _summed(logits.sum(1), loss) / loss.num_classes if eps else None
    powers = logits.sub_(highest[:, None]).exp_()
    total = _summed(powers.sum(1), loss)
    z = total.log() + highest
    losses = z - (of_target if mean is None else (1 - eps) * of_target + eps * mean)
    if loss.z_loss:
        losses = losses + loss.z_loss * z.square()
    weights = is_scored.to(z.dtype) if factors is None else factors * is_scored
    of_softmax = weights * (1 + 2 * loss.z_loss * z) / total
    gradient = powers.mul_(of_softmax[:, None])
    if eps:
        gradient.sub_((weights * (eps / loss.num_classes))[:, None])
    gradient.scatter_add_(1, place, torch.where(is_here, -(1 - eps) * weights, 0.0)[:, None])
    if bend is not None:
        gradient.mul_(bend)
    if loss.scale != 1.0:
        gradient.mul_(loss.scale)
    tokens = torch.where(is_scored, likeliest, IGNORED)
    return _Chunk(torch.where(is_scored, losses, 0.0), tokens, gradient)


def _highest(logits: Tensor, loss: Loss, classes: _Classes) -> tuple[Tensor, Tensor]:
    """[tokens] the highest logit of all devices' classes, and its class, the first of several."""
    highest, likeliest = logits.max(1)
    if loss.group is None:
        return highest, likeliest
    everywhere = highest.clone()
    dist.all_reduce(everywhere, dist.ReduceOp.MAX, group=loss.group)
    likeliest = torch.where(highest == everywhere, likeliest + classes.first, loss.num_classes)
    dist.all_reduce(likeliest, dist.ReduceOp.MIN, group=loss.group)
    return everywhere, likeliest


def _summed(values: Tensor, loss: Loss) -> Tensor:
    """Sum what each device has of its own classes; in place."""
    if loss.group is not None:
        dist.all_reduce(values, group=loss.group)
    return values
