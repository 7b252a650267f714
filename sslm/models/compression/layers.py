"""The layers of a model whose weights can be written with fewer bits."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.models.blocks import blocks
from sslm.models.weights import tied_names
from sslm.system.errors import UserError


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of a model's blocks by name: the head, a pooler and embeddings are none of them.

    GPT-2's are transformers' Conv1D, whose weights are [in, out].
    """
    inside = {module for block in blocks(model) for module in block.modules()}
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear | Conv1D) and module in inside}


def embedding(model: PreTrainedModel) -> tuple[str, nn.Embedding]:
    """Return the table of the vocabulary and its name.

    Raises:
        UserError: the model's head has the same weights, or there is no table.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise UserError(f"--embeddings: {type(model).__name__} has no table of its vocabulary; leave the flag out")
    name = next(name for name, module in model.named_modules() if module is table)
    head = model.get_output_embeddings()
    if tied_names(model) and head is not None and head.weight is table.weight:
        shared = f"{name} is the head's matrix, too, and heads are not quantized"
        raise UserError(f"--embeddings: {shared}; leave the flag out")
    return name, table


def quantized_layers(model: PreTrainedModel, embeddings: bool) -> dict[str, nn.Module]:
    """Return the layers that are quantized by name; each has a `weight` of rows and columns."""
    return linear_layers(model) | (dict([embedding(model)]) if embeddings else {})
