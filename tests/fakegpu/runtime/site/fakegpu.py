"""What the fake runtime can't do is switched off in torch; with FAKE_OPS=1 the CPU's kernels do the arithmetic."""

import ctypes
import os
from functools import partial

import torch


def prepare() -> None:
    """Leave torch with what the fake GPU can do. cuDNN's attention asks its library things that no stub can answer."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.compile = partial(torch.compile, backend="aot_eager_decomp_partition")  # Inductor, but for its kernels
    if os.environ.get("FAKE_OPS"):
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(True)
        torch.backends.cudnn.enabled = False
        define_lstm_cell()
        define_flash_attention()
        ctypes.CDLL(f"{os.environ['FAKE_RUNTIME']}/libcpuops.so").cpuops_enable()


def define_lstm_cell() -> None:
    """Compute an LSTM's cell, which CUDA has a kernel for and the CPU has none."""
    LIBRARY.impl("_thnn_fused_lstm_cell", lstm_cell)
    LIBRARY.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward)


def define_flash_attention() -> None:
    """Compute attention over documents, which the CPU has no kernel for."""
    from tests.support.flash_attention import backward, forward

    LIBRARY.impl("_flash_attention_forward", forward)
    LIBRARY.impl("_flash_attention_backward", backward)


LIBRARY = torch.library.Library("aten", "IMPL", "CUDA")


def lstm_cell(
    of_input: torch.Tensor,
    of_hidden: torch.Tensor,
    cell: torch.Tensor,
    input_bias: torch.Tensor | None = None,
    hidden_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the new hidden state, the new cell, and the gates for the backward pass."""
    sums = of_input + of_hidden
    for bias in (input_bias, hidden_bias):
        sums = sums if bias is None else sums + bias
    enter, forget, new, leave = sums.chunk(4, 1)
    gates = enter.sigmoid(), forget.sigmoid(), new.tanh(), leave.sigmoid()
    after = gates[1] * cell + gates[0] * gates[2]
    return gates[3] * after.tanh(), after, torch.cat(gates, 1)


def lstm_cell_backward(
    grad_hidden: torch.Tensor | None,
    grad_after: torch.Tensor | None,
    cell: torch.Tensor,
    after: torch.Tensor,
    gates: torch.Tensor,
    has_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the gradients of the gates' sums, of the cell before, and of the biases."""
    enter, forget, new, leave = gates.chunk(4, 1)
    of_hidden = torch.zeros_like(cell) if grad_hidden is None else grad_hidden
    of_cell = of_hidden * leave * (1 - after.tanh() ** 2)
    if grad_after is not None:
        of_cell = of_cell + grad_after
    of_sums = (
        of_cell * new * enter * (1 - enter),
        of_cell * cell * forget * (1 - forget),
        of_cell * enter * (1 - new**2),
        of_hidden * after.tanh() * leave * (1 - leave),
    )
    sums = torch.cat(of_sums, 1)
    return sums, of_cell * forget, sums.sum(0) if has_bias else None
