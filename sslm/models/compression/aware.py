"""Quantization-aware training: linear layers whose weights are rounded in each forward pass, as they will be written.

What is trained are the weights as they were: rounding passes gradients straight through (Bengio et al. 2013,
arXiv:1308.3432; Jacob et al. 2017, arXiv:1712.05877). Scales follow from the weights, so there is no state: optimizer,
checkpoints and export don't know of this.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.config import Config
from sslm.models.compression.layers import linear_layers
from sslm.models.compression.packed import dequantized, rounded
from sslm.system.errors import UserError


class Rounding(NamedTuple):
    """How weights are rounded."""

    num_bits: int
    group_size: int | None
    """Weights of a row that share a scale; None for all of them."""


def rounding_of(config: Config) -> Rounding | None:
    """Return how a run rounds weights; None if it doesn't.

    Raises:
        UserError: something else that is asked for does not go with it.
    """
    asked = config.quantize
    if asked.aware is None:
        return None
    flag = f"--quantize.aware {asked.aware}"
    if config.strategy in ("tp", "fsdp_tp"):
        raise UserError(f"{flag}: needs whole rows, which --strategy {config.strategy} divides; give --strategy fsdp")
    if config.lora.rank is not None:
        raise UserError(f"{flag}: rounds weights that are trained, and --lora.rank trains others; leave one out")
    if "fp8" in config.precision:
        raise UserError(f"{flag}: rounds weights, and so does --precision {config.precision}; leave one out")
    return Rounding(4, asked.group_size) if asked.aware == "int4" else Rounding(8, None)


def round_weights(model: PreTrainedModel, rounding: Rounding) -> None:
    """Let a model's linear layers round their weights in each forward pass, in place; the model may be on meta.

    Raises:
        UserError: it has no such layers, or groups don't divide their rows.
    """
    layers: dict[str, Any] = linear_layers(model)
    if not layers:
        raise UserError(f"--quantize.aware: {type(model).__name__} has no blocks with linear layers; leave it out")
    for name, layer in layers.items():
        if (columns := layer.weight.shape[1]) % (rounding.group_size or columns):
            what = f"rows of {name} have {columns} weights, which groups of {rounding.group_size} don't divide"
            raise UserError(f"--quantize.group_size {rounding.group_size}: {what}; give a divisor of {columns}")
        if type(layer) in OURS:
            layer.__class__, layer.rounding = OURS[type(layer)], rounding


class RoundedLinear(nn.Linear):
    """A linear layer that rounds its weights."""

    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, straight_through(self.weight, self.rounding), self.bias)


class RoundedConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is [in, out]."""

    rounding: Rounding

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, straight_through(self.weight, self.rounding).t(), self.bias)


OURS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: RoundedLinear, Conv1D: RoundedConv1D}


def straight_through(weight: Tensor, rounding: Rounding) -> Tensor:
    """Return rounded weights whose gradients are those of the weights.

    >>> weight = torch.tensor([[7.5, 1.2]], requires_grad=True)
    >>> made = straight_through(weight, Rounding(4, 2))
    >>> made.sum().backward()
    >>> made.tolist(), weight.grad.tolist()
    ([[7.0, 1.0]], [[1.0, 1.0]])
    """
    made: Tensor = _Rounded.apply(weight, rounding)  # type: ignore[no-untyped-call]
    return made


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Rounding) -> Tensor:
        return dequantized(*rounded(weight, rounding.num_bits, rounding.group_size or weight.shape[1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
