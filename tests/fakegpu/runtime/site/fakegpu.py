"""What the fake runtime can't do is switched off in torch; with FAKE_OPS=1 the CPU's kernels do the arithmetic."""

import ctypes
import os

import torch


def prepare() -> None:
    """Leave torch with what the fake GPU can do. cuDNN's attention asks its library things that no stub can answer."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    if os.environ.get("FAKE_OPS"):
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(True)
        torch.backends.cudnn.enabled = False
        ctypes.CDLL(f"{os.environ['FAKE_RUNTIME']}/libcpuops.so").cpuops_enable()
