"""Newton-Schulz's iteration for the nearest orthogonal matrix, of many matrices at once."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose slope at 0 is steepest (Jordan et al. 2024): singular values end between about 0.7 and 1.2."""
NUM_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Map U S V' to about U V'.

    Args:
        matrices: [number, rows, columns], of `working_dtype`.

    >>> values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 8, 5)))
    >>> bool((values > 0.5).all() and (values < 1.3).all())
    True
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def working_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs, where it is enough and fast; fp32 on CPUs, most of which multiply that faster."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
