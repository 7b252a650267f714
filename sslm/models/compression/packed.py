"""Whole numbers of 4 or 8 bits, packed, in the format of compressed-tensors (pack-quantized).

Weights w of a group share a scale s, their largest magnitude over 7.5 (127.5); each is written as round(w / s), from -8
to 7 (-128 to 127). transformers turns them into plain weights when it loads them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.compression.gptq import gptq
from sslm.models.compression.inputs import input_sums, products
from sslm.models.compression.layers import linear_layers, quantized_layers
from sslm.models.compression.plain import load
from sslm.system.errors import UserError


def write(
    folder: Path,
    out: Path,
    num_bits: int,
    group_size: int | None,
    embeddings: bool,
    batches: Iterable[Mapping[str, Any]] = (),
) -> PreTrainedModel:
    """Quantize a folder's model into another folder; return it with the weights that are written, not packed.

    Args:
        folder: the model's, with its weights as they were trained.
        out: where weights and config are written.
        num_bits: 4 or 8.
        group_size: weights of a row that share a scale; None for all of them.
        embeddings: whether the table of the vocabulary is quantized, too.
        batches: arguments of forward passes, for GPTQ; of layers that read nothing, weights are rounded to the nearest.
    """
    from transformers import CompressedTensorsConfig

    model = load(folder)
    layers = quantized_layers(model, embeddings)
    tensors = dict(model.state_dict())
    read = input_sums(model, linear_layers(model), batches, products)
    for name, layer in layers.items():
        _pack(tensors, name, layer, num_bits, group_size, read.pop(name, None))
    shared = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    weights = {"num_bits": num_bits, "type": "int", "symmetric": True, **shared}
    group = {"targets": [*layers], "weights": weights, "format": "pack-quantized"}
    config = CompressedTensorsConfig({"layers": group}, format="pack-quantized", quantization_status="compressed")
    # Else transformers makes modules without weights, which the initialisation of some architectures (T5) asks for.
    model.config.quantization_config = {**config.to_dict(), "dequantize": True}
    model.save_pretrained(out, state_dict=tensors)
    del model.config.quantization_config
    return model


@torch.no_grad()
def _pack(
    tensors: dict[str, Tensor], name: str, layer: Any, num_bits: int, group_size: int | None, read: Tensor | None
) -> None:
    """Replace a layer's weights by what they are rounded to, and in `tensors` by what compressed-tensors reads."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    weight = tensors.pop(f"{name}.weight")
    numbers, scales = rounded(weight, num_bits, group_size or weight.shape[-1])
    if read is not None:
        if not read.isfinite().all():
            what = f"what {name} reads of the text to calibrate with is no finite number"
            raise UserError(f"--quantize int4-gptq: {what}; give int4")
        numbers = gptq(layer, scales, read, num_bits)
    tensors[f"{name}.weight_packed"] = pack_to_int32(numbers, num_bits)
    tensors[f"{name}.weight_scale"] = scales
    tensors[f"{name}.weight_shape"] = torch.tensor(weight.shape)
    layer.weight.copy_(dequantized(numbers, scales))


def rounded(weight: Tensor, num_bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Round each weight to the nearest multiple of its group's scale.

    Args:
        weight: [rows, columns]; columns are a multiple of the group's size.
        num_bits: at most 8.
        group_size: weights of a row that share a scale.

    Returns:
        [rows, columns] whole numbers as int8, and [rows, groups] scales in the weight's dtype.

    >>> numbers, scales = rounded(torch.tensor([[7.5, -7.5, 1.0, 0.0]]), 4, 4)
    >>> numbers.tolist(), scales.tolist()
    ([[7, -8, 1, 0]], [[1.0]])
    """
    # times the inverse, as torchao does it: quantization-aware training rounds for both
    half = 2 ** (num_bits - 1)
    groups = weight.reshape(len(weight), -1, group_size)
    scales = groups.abs().amax(-1) / (half - 0.5)
    scales = scales.where(scales > 0, 1)  # a group of zeros
    numbers = (groups * (1 / scales)[..., None]).round().clamp(-half, half - 1)
    return numbers.reshape(weight.shape).to(torch.int8), scales


def dequantized(numbers: Tensor, scales: Tensor) -> Tensor:
    """Return the weights that numbers stand for: [rows, columns] in the scales' dtype."""
    groups = numbers.reshape(*scales.shape, -1).to(scales.dtype)
    return (groups * scales[..., None]).reshape(numbers.shape)
