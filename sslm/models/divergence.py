"""A student's loss beside a teacher, some places at a time: the logits of all places are never there, of neither.

With logits s of the student and t of the teacher, q = softmax(s / T) and p = softmax(t / T), a place's divergence is

    forward_kl    Σ p log(p / q)                              Hinton et al. 2015, arXiv:1503.02531
    reverse_kl    Σ q log(q / p)                              Gu et al. 2023, arXiv:2306.08543
    js            ½ Σ p log(p / m) + ½ Σ q log(q / m)         Agarwal et al. 2023, arXiv:2306.13649; m = (p + q) / 2

and its loss (1 − w) · own + w · T² · divergence. Of a model that says one number, p and q are that number, and the
divergence is the squared difference. As in `linear_cross_entropy`, gradients are made in the forward pass.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslm.models.linear_cross_entropy import is_one_number, tokens_at_a_time
from sslm.models.network import is_scored
from sslm.models.outputs import Outputs

FLOOR = -1e4
"""Log-probability of what is impossible: e to it is 0 in any dtype, and 0 times it is 0, as of −∞ it is not."""
Divergence = Literal["forward_kl", "reverse_kl", "js"]
OwnLosses = Callable[[Tensor, Tensor], Tensor]
"""[places, classes] logits, [places] targets -> [places] loss of each target, 0 if it is not scored."""


class Mix(NamedTuple):
    """What a loss beside a teacher is made of."""

    weight: float
    """w: share of the divergence."""
    temperature: float
    divergence: Divergence


class Teacher(Protocol):
    """What a teacher said at the places of a batch."""

    def beside(self, logits: Tensor, here: slice, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the same events, [places, events] each: the teacher's and the student's.

        Args:
            logits: [places, classes] of the student, at the places `here` of all.
        """


class Live(NamedTuple):
    """A teacher whose outputs are at hand."""

    outputs: Outputs

    def beside(self, logits: Tensor, here: slice, temperature: float) -> tuple[Tensor, Tensor]:
        theirs = logits_of(self.outputs, here).to(logits.dtype)
        shared = min(theirs.shape[-1], logits.shape[-1])
        if shared == 1:  # a number
            return theirs, logits
        both = (some[:, :shared] / temperature for some in (theirs, logits))
        teacher, student = (some.log_softmax(-1).clamp(min=FLOOR) for some in both)
        return teacher, student


class Losses(NamedTuple):
    """What `losses_beside` returns."""

    rows: Tensor
    """[rows] summed loss in nats, fp32 at least."""
    own: Tensor
    """[rows] the own objective's, without a gradient."""
    divergence: Tensor
    """[rows] summed divergence in nats, without a gradient."""


def losses_beside(student: Outputs, teacher: Teacher, own: OwnLosses, mix: Mix) -> Losses:
    """Sum each row's loss, and its two parts, over scored places alone."""
    layer = student.layer
    tensors = student.states, None if layer is None else layer.weight, None if layer is None else layer.bias
    needs = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors)
    made = _LossesBeside.apply(*tensors, student, teacher, own, mix, needs)  # type: ignore[no-untyped-call]
    return Losses(*made)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """[places, events] log-probabilities of both -> [places] nats; of one number each, the squared difference."""
    if student.shape[-1] == 1:
        return (student - teacher).square().sum(-1)
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    mean = torch.logaddexp(teacher, student) - math.log(2)
    return (_kl(teacher, mean) + _kl(student, mean)) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def logits_of(outputs: Outputs, here: slice) -> Tensor:
    """[places, classes] in fp32 at least."""
    states, layer = outputs.states.flatten(0, 1)[here], outputs.layer
    if layer is None:
        return states[:, : outputs.num_classes].to(torch.promote_types(states.dtype, torch.float32))
    some = slice(outputs.num_classes)
    return layer.logits(
        states.to(layer.weight.dtype), layer.weight[some], None if layer.bias is None else layer.bias[some]
    )


class _LossesBeside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        student: Outputs,
        teacher: Teacher,
        own: OwnLosses,
        mix: Mix,
        needs: tuple[bool, bool, bool],
    ) -> Any:
        kind = states.device.type
        dtype = states.dtype if weight is None else weight.dtype
        if weight is not None and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        ctx.again = student, teacher, own, mix, needs, dtype
        ctx.are_used = False
        ctx.set_materialize_grads(False)
        losses, ctx.gradients = _run(student, teacher, own, mix, needs, dtype)
        rows, own_rows, apart = (each.view_as(student.targets).sum(1) for each in losses)
        ctx.mark_non_differentiable(own_rows, apart)
        return rows, own_rows, apart

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor | None, *_: Any) -> Any:
        """Scale the gradients that the forward pass has made, if all rows' losses count alike; else make them again."""
        if of_rows is None:
            return (None,) * 8
        gradients = ctx.gradients
        if is_one_number(of_rows) and not ctx.are_used:
            ctx.are_used = True
            gradients = [g if g is None else g.mul_(of_rows[0]) for g in gradients]
        else:
            student, teacher, own, mix, needs, dtype = ctx.again
            gradients = _run(student, teacher, own, mix, needs, dtype, of_rows)[1]
        student = ctx.again[0]
        like = student.states, *((None, None) if student.layer is None else (student.layer.weight, student.layer.bias))
        return *(g if g is None else g.to(x.dtype) for g, x in zip(gradients, like, strict=True)), *(None,) * 5


@torch.no_grad()
def _run(
    student: Outputs,
    teacher: Teacher,
    own: OwnLosses,
    mix: Mix,
    needs: tuple[bool, bool, bool],
    dtype: torch.dtype,
    of_rows: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Make [3, places] losses, own losses and divergences, and gradients of states, weight and bias, if needed.

    Args:
        dtype: of the student's products.
        of_rows: [rows] what each row's gradient is multiplied by; None: 1.
    """
    wide, layer, some = torch.promote_types(dtype, torch.float32), student.layer, slice(student.num_classes)
    states, targets = student.states.flatten(0, 1).to(dtype), student.targets.flatten()
    parameters = [] if layer is None else [x for x in (layer.weight, layer.bias) if x is not None]
    cut = [x.detach()[some].to(dtype).requires_grad_(need) for x, need in zip(parameters, needs[1:], strict=False)]
    of_states = torch.empty_like(states) if needs[0] else None
    of_parameters = [torch.zeros_like(x, dtype=wide) for x in parameters]
    factors = None if of_rows is None else of_rows.repeat_interleave(student.targets.shape[1])
    losses = torch.empty(3, len(targets), dtype=wide, device=states.device)
    size = tokens_at_a_time(len(targets), student.num_classes, states.device.type)
    for start in range(0, len(targets), size):
        here = slice(start, start + size)
        with torch.enable_grad(), torch.autocast(states.device.type, enabled=False):
            part = states[here].detach().requires_grad_(needs[0])
            if layer is None:
                logits = part[:, some].to(wide)
            else:
                logits = layer.logits(part, cut[0], cut[1] if len(cut) > 1 else None)
            loss, *parts = _losses_of(logits, targets[here], here, teacher, own, mix)
        losses[:, here] = torch.stack([loss, *parts]).detach()
        wanted = [x for x in (part, *cut) if x.requires_grad]
        if not wanted:
            continue
        of_losses = torch.ones_like(loss) if factors is None else factors[here].to(loss.dtype)
        found = dict(zip(wanted, torch.autograd.grad(loss, wanted, of_losses), strict=True))
        if of_states is not None:
            of_states[here] = found[part]
        for total, x in zip(of_parameters, cut, strict=True):
            if x in found:
                total[some] += found[x]
    of_weight_and_bias = [g if need else None for g, need in zip(of_parameters, needs[1:], strict=False)]
    of_weight_and_bias += [None] * (2 - len(of_weight_and_bias))
    return losses, [None if of_states is None else of_states.view_as(student.states), *of_weight_and_bias]


def _losses_of(
    logits: Tensor, targets: Tensor, here: slice, teacher: Teacher, own: OwnLosses, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """[places] each: loss, own loss and divergence of some places."""
    own_losses = own(logits, targets)
    apart = divergence(*teacher.beside(logits, here, mix.temperature), mix.divergence)
    apart = torch.where(is_scored(targets), apart, 0.0)
    scale = 1.0 if logits.shape[-1] == 1 else mix.temperature**2
    return (1 - mix.weight) * own_losses + mix.weight * scale * apart, own_losses, apart
