"""Matmuls in 8-bit floats that are scaled finer than as a whole: each row, or each 32 numbers of a row.

A number that is far from the others then costs its own row or block precision, not the whole tensor. Each of a linear
layer's three matmuls scales its factors along the dimension that it sums over, so a tensor is scaled anew for each. All
are in e4m3: gradients need no wider range if few share a scale.

Blocks are those of MXFP8 (OCP Microscaling Formats 1.0; Rouhani et al. 2023, arXiv:2310.10537). They share a power of
two, which is rounded up so that nothing is cut off (Mishra et al. 2025, arXiv:2506.08027).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
"""Numbers that share a scale, one after the other along the dimension that is summed over."""
E4M3 = torch.float8_e4m3fn
LARGEST: float = torch.finfo(E4M3).max
SMALLEST = 1e-30
"""Magnitudes below this count as zero, so that a row's scale has an inverse."""
BIAS, NOT_A_NUMBER = 127, 255
"""Of e8m0, which holds powers of two: what is added to the exponent, and what stands for no number."""
TILE = (128, 4)
"""Scales that cuBLAS reads as one piece: rows, blocks."""


class Scaled(NamedTuple):
    """A matrix as values · scales."""

    values: Tensor
    """[rows, length] in e4m3."""
    scales: Tensor
    """[rows, 1] in fp32, or [rows, length / 32] in e8m0."""

    def wide(self) -> Tensor:
        """[rows, length] the matrix, in fp32."""
        scales = self.scales.float()
        return self.values.float() * scales.repeat_interleave(self.values.shape[1] // scales.shape[1], dim=1)


def by_row(matrix: Tensor) -> Scaled:
    """Scale each row so that its largest magnitude is the format's largest."""
    scales = matrix.abs().amax(1, keepdim=True).float().clamp(min=SMALLEST) / LARGEST
    return Scaled((matrix.float() / scales).clamp(-LARGEST, LARGEST).to(E4M3), scales)


def in_blocks(matrix: Tensor) -> Scaled:
    """Scale each block by the smallest power of two that brings its largest magnitude within the format's range.

    Args:
        matrix: [rows, length], a multiple of 32.
    """
    blocks = matrix.float().view(len(matrix), -1, BLOCK)
    highest = blocks.abs().amax(2)
    mantissas, exponents = torch.frexp(highest / LARGEST)  # mantissa · 2^exponent, the mantissa at least a half
    exponents = (exponents - (mantissas == 0.5).int()).clamp(-BIAS, BIAS)
    values = torch.ldexp(blocks, -exponents[..., None]).clamp(-LARGEST, LARGEST).to(E4M3).flatten(1)
    codes = torch.where(highest.isfinite(), exponents + BIAS, NOT_A_NUMBER).to(torch.uint8)
    return Scaled(values, codes.view(torch.float8_e8m0fnu))


def product(a: Scaled, b: Scaled) -> Tensor:
    """[rows of a, length], [rows of b, length] -> [rows of a, rows of b] in bf16; by fp32 where it is no CUDA."""
    if a.values.device.type != "cuda":
        return (a.wide() @ b.wide().t()).to(torch.bfloat16)
    if a.scales.dtype == torch.float32:
        scales = a.scales, b.scales.t().contiguous()
    else:
        scales = in_tiles(a.scales), in_tiles(b.scales)
    return torch._scaled_mm(a.values, b.values.t(), *scales, out_dtype=torch.bfloat16)


def in_tiles(scales: Tensor) -> Tensor:
    """[rows, blocks] -> all in the order in which cuBLAS reads them, with zeros where tiles reach beyond the matrix.

    Within a tile the scale of (row, block) stands at 16 · (row mod 32) + 4 · (row div 32) + block (cuBLAS
    documentation, "1D Block Scaling Factors Layout"); tiles follow each other as the rows of a matrix do.
    """
    rows, blocks = scales.shape
    codes = F.pad(scales.view(torch.uint8), (0, -blocks % TILE[1], 0, -rows % TILE[0]))
    tiles = codes.view(-1, 4, 32, codes.shape[1] // TILE[1], TILE[1]).permute(0, 3, 2, 1, 4)
    return tiles.flatten().view(scales.dtype)


class FineMatmul(torch.autograd.Function):
    """[tokens, in_features], [out_features, in_features] -> [tokens, out_features] in bf16."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, by_blocks: bool) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.scaled = in_blocks if by_blocks else by_row
        return product(ctx.scaled(input), ctx.scaled(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = product(ctx.scaled(gradient), ctx.scaled(weight.t().contiguous())).to(input.dtype)
        if ctx.needs_input_grad[1]:
            missing = (0, 0, 0, -len(input) % BLOCK)  # tokens that add nothing
            rows, columns = (F.pad(tensor, missing).t().contiguous() for tensor in (gradient, input))
            of_weight = product(ctx.scaled(rows), ctx.scaled(columns)).to(weight.dtype)
        return of_input, of_weight, None
