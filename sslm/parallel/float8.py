"""Linear layers that multiply in 8-bit floats, scaled tensor by tensor (Micikevicius et al. 2022, arXiv:2209.05433).

A linear layer's three matmuls take activations and weights in e4m3, gradients in e5m2. Before that each tensor is
divided by a scale, found anew each time, that makes its largest magnitude the largest of the format; or it is scaled by
row or in blocks (`fine_scaling`). Weights keep their dtype (fp32 or bf16): optimizer, checkpoints and export don't know
of this. It is fast if compiled: scaling is fused with what precedes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sslm.parallel.fine_scaling import BLOCK, FineMatmul
from sslm.parallel.launch import Scaling

MULTIPLE = 16
"""GPUs multiply matrices of 8-bit floats if their sides are multiples of this."""
FEWEST_OF_MANY = 3
"""Blocks of a model from which on the first and the last stay as they are."""
CAPABILITIES: dict[Scaling, tuple[int, int]] = {"tensor": (8, 9), "row": (8, 9), "block": (10, 0)}
"""The first compute capability of NVIDIA's GPUs that multiplies so: Ada, Hopper; Blackwell."""
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
SMALLEST = 1e-30
"""Magnitudes below this count as zero, so that the scale's inverse is a number."""


def supports_float8(device: torch.device, scaling: Scaling = "tensor") -> bool:
    """Whether a device has these matmuls: newer NVIDIA GPUs; CPUs too, without being faster."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= CAPABILITIES[scaling]
    return device.type == "cpu"


def in_8_bits(blocks: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Choose the blocks that multiply in 8 bits: all but the first and the last, unless there are no others.

    What goes in and what comes out is the most sensitive (Grattafiori et al. 2024, arXiv:2407.21783, section 6.2).
    """
    return blocks[1:-1] if len(blocks) >= FEWEST_OF_MANY else blocks


def use_float8(block: nn.Module, scaling: Scaling = "tensor") -> int:
    """Let the block's suitable linear layers multiply in 8 bits, in place, and return their number."""
    layers: list[Any] = [module for module in block.modules() if suits_float8(module, scaling)]
    for layer in layers:
        layer.__class__, layer.scaling = OURS[type(layer)], scaling
    return len(layers)


def suits_float8(module: nn.Module, scaling: Scaling) -> bool:
    """Whether a module is a plain linear layer with sides of suitable lengths: multiples of 16, or of whole blocks."""
    multiple = multiple_of(scaling)
    return type(module) in OURS and all(side % multiple == 0 for side in module.get_parameter("weight").shape)


def multiple_of(scaling: Scaling) -> int:
    return BLOCK if scaling == "block" else MULTIPLE


class Float8Linear(nn.Linear):
    """A linear layer that multiplies in 8 bits; its output has autocast's dtype, or the input's without autocast."""

    scaling: Scaling

    def forward(self, input: Tensor) -> Tensor:
        return multiplied(input, self.weight, self.bias, self.scaling)


class Float8Conv1D(Conv1D):
    """GPT-2's linear layer, whose weight is [in_features, out_features], multiplying in 8 bits."""

    scaling: Scaling

    def forward(self, x: Tensor) -> Tensor:
        return multiplied(x, self.weight.t(), self.bias, self.scaling)


OURS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Float8Linear, Conv1D: Float8Conv1D}


def multiplied(input: Tensor, weight: Tensor, bias: Tensor | None, scaling: Scaling) -> Tensor:
    """Apply a linear layer in 8 bits: […, in_features], [out_features, in_features] -> […, out_features]."""
    kind = input.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
    flat = input.reshape(-1, input.shape[-1])
    output: Tensor
    if scaling == "tensor":
        output = _Matmul.apply(flat, weight, dtype)  # type: ignore[no-untyped-call]
    else:  # it keeps what comes in as it is, so in no wider type than it needs
        output = FineMatmul.apply(flat.to(dtype), weight, scaling == "block").to(dtype)  # type: ignore[no-untyped-call]
    output = output.view(*input.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias.to(output.dtype)


class _Matmul(torch.autograd.Function):
    """[tokens, in_features], [out_features, in_features] -> [tokens, out_features] of `dtype`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        input_scale, weight_scale = _scale(input, FORWARD), _scale(weight, FORWARD)
        input8 = _scaled(input, input_scale, FORWARD)
        # the weight itself, not its copy in 8 bits: a sharded one is freed after the forward pass
        ctx.save_for_backward(input8, input_scale, weight, weight_scale)
        ctx.input_dtype = input.dtype
        weight8 = _scaled(weight, weight_scale, FORWARD)
        return torch._scaled_mm(input8, weight8.t(), input_scale, weight_scale, out_dtype=dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input8, input_scale, weight, weight_scale = ctx.saved_tensors
        scale = _scale(gradient, BACKWARD)
        gradient8 = _scaled(gradient, scale, BACKWARD)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            weight8 = _scaled(weight, weight_scale, FORWARD)
            of_input = torch._scaled_mm(
                gradient8, _by_column(weight8), scale, weight_scale, out_dtype=ctx.input_dtype, use_fast_accum=False
            )
        if ctx.needs_input_grad[1]:
            missing = -len(input8) % MULTIPLE  # tokens that add nothing
            if missing:
                gradient8, input8 = (_with_zeros(t, missing) for t in (gradient8, input8))
            rows, columns = gradient8.t().contiguous(), _by_column(input8)
            of_weight = torch._scaled_mm(
                rows, columns, scale, input_scale, out_dtype=weight.dtype, use_fast_accum=False
            )
        return of_input, of_weight, None


def _scale(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the divisor (a scalar in fp32) that makes a tensor span the format's range."""
    return tensor.abs().amax().float().clamp(min=SMALLEST) / torch.finfo(dtype).max


def _scaled(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in 8 bits, row by row in memory; what rounds past the largest number becomes that."""
    largest = torch.finfo(dtype).max
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype).contiguous()


def _by_column(matrix: Tensor) -> Tensor:
    """Return the same matrix, column by column in memory, as the second factor has to be."""
    return matrix.t().contiguous().t()


def _with_zeros(matrix: Tensor, num: int) -> Tensor:
    return F.pad(matrix.view(torch.uint8), (0, 0, 0, num)).view(matrix.dtype)
