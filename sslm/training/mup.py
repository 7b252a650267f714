"""Maximal update parametrization: the best learning rate of a narrow model is that of a wide one.

After Yang et al. 2022, arXiv:2203.03466, table 3, relative to a base width: with m = width / base width, matrices that
read activations have AdamW's rate times 1 / m; those of the hidden layers begin 1 / sqrt(m), the head 1 / m times as
large as transformers draws them. All else (embeddings, norms, biases) is as it was. At the base width nothing changes.

Wider models should have more heads, not larger ones: attention is then scaled as it has to be.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sslm.system.errors import UserError

POWERS = {"muon": 0.5}
"""How the rate of hidden matrices falls with the width, if not with its first power: Muon's updates are orthogonal."""


def rates(model: PreTrainedModel, base_width: int, optimizer: str) -> dict[nn.Parameter, float]:
    """Map each parameter of a model to what its learning rate is multiplied by."""
    m, head = width_of(model) / base_width, _head(model)
    found = dict.fromkeys(model.parameters(), 1.0)
    for parameter in readers(model):
        found[parameter] = m ** -(1.0 if parameter is head else POWERS.get(optimizer, 1.0))
    return found


@torch.no_grad()
def scale_first_weights(model: PreTrainedModel, base_width: int) -> None:
    """Scale fresh weights in place, whole or sharded."""
    m, head = width_of(model) / base_width, _head(model)
    for parameter in readers(model):
        parameter.mul_(m**-1.0 if parameter is head else m**-0.5)


def check_mup(model: PreTrainedModel, optimizer: str) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: head and embedding are one matrix, or the optimizer's updates follow the size of weights.
    """
    embedding = model.get_input_embeddings()
    if (head := _head(model)) is None or head is embedding.weight:
        kind = f"a {model.config.model_type}'s head shares its weights with the embedding"
        raise UserError(f"--optim.mup: {kind}; give --model.tie_word_embeddings false, or leave it out")
    if optimizer == "adafactor":
        raise UserError("--optim.mup: adafactor's updates follow the size of the weights; give --optim.name adamw")


def readers(model: PreTrainedModel) -> list[nn.Parameter]:
    """Matrices that multiply activations, whose number of inputs grows with the width."""
    return [
        parameter
        for layer in model.modules()
        if not isinstance(layer, nn.Embedding)
        for name, parameter in layer.named_parameters(recurse=False)
        if (parameter.ndim == 2 and "weight" in name) or (parameter.ndim == 3 and "proj" in name)  # of experts
    ]


def width_of(model: PreTrainedModel) -> int:
    """Numbers in a token's activations between blocks."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[-1])


def _head(model: PreTrainedModel) -> nn.Parameter | None:
    head = model.get_output_embeddings()
    return None if head is None else head.weight
