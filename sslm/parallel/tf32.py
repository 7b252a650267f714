"""How GPUs multiply fp32 matrices: as they are, or rounded to TF32 (10 of 23 bits of mantissa), on tensor cores."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sslm.parallel.launch import Launch


@contextmanager
def fp32_products(launch: Launch) -> Iterator[None]:
    """Multiply fp32 matrices meanwhile as the precision says: in TF32 with 32-tf32 alone.

    torch's own setting is to multiply them as they are, but for cuDNN's, which an LSTM's are.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if launch.computes_in_fp32:
        in_tf32 = launch.precision == "32-tf32"
        torch.set_float32_matmul_precision("high" if in_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = in_tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
