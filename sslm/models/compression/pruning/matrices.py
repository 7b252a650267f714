"""The matrices that are pruned: those of the linear layers in a model's blocks."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.models.blocks import blocks
from sslm.system.errors import UserError


class Matrix(NamedTuple):
    """A linear layer's weight."""

    layer: nn.Module
    input_dim: int
    """Dimension along which its inputs stand: 1, but 0 of GPT-2's Conv1D."""

    def by_row(self, values: Tensor) -> Tensor:
        """Turn what has the weight's shape to [outputs, inputs], or back."""
        return values if self.input_dim == 1 else values.T


def matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    """Map names of weights to the matrices that are pruned; embeddings and heads stay.

    Raises:
        UserError: it has no blocks, or experts, which are no linear layers.
    """
    inside = {module for block in blocks(model) for module in block.modules()}
    found = {
        f"{name}.weight": Matrix(layer, 0 if isinstance(layer, Conv1D) else 1)
        for name, layer in model.named_modules()
        if layer in inside and isinstance(layer, nn.Linear | Conv1D)
    }
    kind = model.config.model_type
    if not found:
        raise UserError(f"prune.pattern: {kind} has no blocks with linear layers; it can't be pruned")
    if any(weight.ndim == 3 for module in inside for weight in module.parameters(recurse=False)):
        raise UserError(f"prune.pattern: {kind} has experts, which can't be pruned")
    return found


def modules(matrices: Mapping[str, Matrix]) -> dict[str, nn.Module]:
    """Map names of weights to their layers."""
    return {name: layer for name, (layer, _) in matrices.items()}
