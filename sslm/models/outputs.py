"""What a network says at its scored places, before a loss is made of it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslm.models.layer_states import Said


@dataclass(frozen=True)
class LastLayer:
    """What turns states into logits; no pytree, in which FSDP would look for a pass' outputs."""

    weight: Tensor
    """[classes or more, width]"""
    bias: Tensor | None
    scale: float = 1.0
    """What the layer's outputs are multiplied by."""
    soft_cap: float | None = None
    """c of c · tanh(output / c)."""

    def logits(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[places, width] -> [places, classes], in fp32 at least; `weight` and `bias` stand in for this layer's."""
        made = F.linear(states, weight, bias)
        made = made.to(torch.promote_types(made.dtype, torch.float32)) * self.scale
        return made if self.soft_cap is None else self.soft_cap * torch.tanh(made / self.soft_cap)


class Layers(NamedTuple):
    """What a network's watched layers said, and where that counts."""

    said: list[Said]
    """Of each stack of blocks."""
    places: list[Tensor]
    """Of each stack, [rows, length] whether a place is compared: the scored ones, or all tokens if it scores none."""


class Outputs(NamedTuple):
    """Logits at scored places, or what the last layer makes them of: then no logits of all places are ever there."""

    states: Tensor
    """[rows, places, width] the last layer's inputs, or [rows, places, classes] logits."""
    targets: Tensor
    """[rows, places] a class each, or a number; what is not scored is as in the labels."""
    num_classes: int
    """The first so many logits count, the others are padding."""
    layer: LastLayer | None = None
    layers: Layers | None = None
    """None if none are watched."""
