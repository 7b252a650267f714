"""Weights in fewer bits, written as a Hugging Face folder that transformers and one library load.

int8 is torchao's, int4 in the format of compressed-tensors. Only linear layers of the blocks are quantized, and the
table of the vocabulary if that is asked for. GPT-2's layers are transformers' Conv1D, which torchao leaves as they are:
their int8 is in the format of compressed-tensors, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.models.compression import int8, packed
from sslm.models.compression.layers import linear_layers, quantized_layers
from sslm.models.compression.plain import load
from sslm.models.quantized import check_installed
from sslm.system.errors import UserError

METHODS = {
    "int8": "torchao",
    "int8-dynamic": "torchao",
    "int4": "compressed-tensors",
    "int4-gptq": "compressed-tensors",
}
"""How weights are quantized -> the library that loads them."""


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized."""

    method: str
    """A key of METHODS. int8: each row of a matrix has its scale; int8-dynamic: so has each token, when it comes;
    int4: each group of a row has one; int4-gptq: so it is, and rounding makes up for itself."""
    group_size: int = 32
    """Weights that share a scale; of int4."""
    embeddings: bool = False
    """Whether the table of the vocabulary is written in 8 bits, too."""

    @property
    def is_int4(self) -> bool:
        return self.method in ("int4", "int4-gptq")

    @property
    def reads_text(self) -> bool:
        """Whether it must see what the layers read."""
        return self.method == "int4-gptq"

    def __str__(self) -> str:
        return self.method


def check(model: PreTrainedModel, how: Quantization) -> None:
    """Raise UserError if a model can't be quantized so."""
    flag, kind = f"--quantize {how.method}", type(model).__name__
    if not linear_layers(model):
        raise UserError(f"{flag}: {kind} has no blocks with linear layers, and no others are quantized")
    if any(weight.ndim > 2 for name, weight in model.named_parameters() if ".experts." in name):
        raise UserError(
            f"{flag}: {kind}'s experts are one tensor a block, which is not quantized, and they are the most of it"
        )
    layers = quantized_layers(model, how.embeddings)
    if has_conv1d(layers):
        check_installed("compressed-tensors", f"{flag}:")  # both are packed
        if how.method == "int8-dynamic":
            raise UserError(f"{flag}: torchao doesn't know {kind}'s layers (Conv1D); give --quantize int8, or int4")
    for name, layer in layers.items() if how.is_int4 else ():
        columns = cast(Tensor, layer.weight).shape[1]
        if columns % how.group_size:
            fits = next(size for size in (128, 64, 32, 16, 8, 4, 2, 1) if not columns % size)
            what = f"rows of {name} have {columns} weights, which groups of {how.group_size} don't divide"
            raise UserError(f"--group_size {how.group_size}: {what}; give --group_size {fits}")


def has_conv1d(layers: dict[str, nn.Module]) -> bool:
    """Whether there are GPT-2's layers among them, which torchao leaves as they are."""
    return any(isinstance(layer, Conv1D) for layer in layers.values())


def quantize(folder: Path, out: Path, how: Quantization, batches: Iterable[Mapping[str, Any]] = ()) -> PreTrainedModel:
    """Quantize the model of a Hugging Face folder, and write it.

    Args:
        folder: the model's, with its weights as they were trained.
        out: a folder that is there; weights and config are written into it.
        how: fits the model.
        batches: arguments of forward passes, for what reads text.

    Returns:
        What was written, as a model in memory.
    """
    if how.is_int4:
        return packed.write(folder, out, 4, how.group_size, how.embeddings, batches if how.reads_text else ())
    if has_conv1d(linear_layers(load(folder, device_map="meta"))):
        return packed.write(folder, out, 8, None, how.embeddings)
    return int8.write(folder, out, how.method == "int8-dynamic", how.embeddings)
