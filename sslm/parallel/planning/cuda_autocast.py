"""CUDA's autocast on tensors of the CPU, so that a machine without a GPU can tell what one keeps of a forward pass.

The CPU's own autocast leaves in 16 bits what CUDA's computes in fp32 (powers, softmax, sums, norms), and an activation
in fp32 takes twice the memory. Both tables are torch's and in every build of it: CUDA's is read, and what it has in
fp32 is entered into the CPU's meanwhile.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

NOT_FP32 = {
    *("prelu", "addmv", "addr", "einsum", "mv", "chain_matmul", "linalg_multi_dot", "lstm_cell", "gru_cell"),
    *("rnn_tanh_cell", "rnn_relu_cell", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_cudnn_rnn", "convolution"),
    *("_convolution", "cudnn_convolution", "cudnn_convolution_transpose", "_scaled_dot_product_flash_attention"),
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add"),
    *("tensordot", "vdot"),
}
"""What CUDA's autocast casts otherwise than to fp32 and the CPU's doesn't: first to 16 bits, then to the widest type
that comes in. All of it keeps what it is given, or is made of operations that both know."""


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """Compute tensors of the CPU in `dtype` and fp32 as CUDA's autocast would; all threads' autocast meanwhile."""
    with torch.library._scoped_library("aten", "IMPL") as table, torch.autocast("cpu", dtype, cache_enabled=False):
        for name in cuda_fp32():
            table.impl(name, functools.partial(_in_fp32, _overload(name)), "AutocastCPU")
        yield


def cuda_fp32() -> list[str]:
    """Return the operations, with their overloads, that CUDA's autocast alone computes in fp32."""
    cuda, cpu = (set(torch._C._dispatch_get_registrations_for_dispatch_key(f"Autocast{on}")) for on in ("CUDA", "CPU"))
    names = (name.removeprefix("aten::") for name in cuda - cpu)
    return sorted(name for name in names if name.partition(".")[0] not in NOT_FP32)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _in_fp32(operation: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = tree_map(_widened, (args, kwargs))
    with torch.autocast("cpu", enabled=False):
        return operation(*args, **kwargs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
