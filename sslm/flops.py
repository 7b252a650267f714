"""FLOPs of a training step in closed form, and what devices can do at most."""

import time

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

PEAKS = {
    "H200": 989.4e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989.4e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense bf16 (V100: fp16) FLOP/s by a part of the device's name, as the makers state them; first match holds."""


def matmul_parameters(model: nn.Module) -> int:
    """Weights that multiply activations, the head's included; embeddings that are only looked up are not."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))


def active_matmul_parameters(model: PreTrainedModel, scored_share: float = 1.0) -> float:
    """Those that multiply a token's activations on average: the head works on scored places alone.

    >>> from transformers import BertConfig, BertForMaskedLM
    >>> with torch.device("meta"):
    ...     bert = BertForMaskedLM(BertConfig())
    >>> round(flops_per_token(bert.config, active_matmul_parameters(bert, 0.15), 512) / 1e6)
    588
    """
    everything, body = matmul_parameters(model), matmul_parameters(model.base_model)
    return body + scored_share * (everything - body)


def flops_per_token(config: PreTrainedConfig, num_matmul: float, seq_len: int) -> float | None:
    """Forward and backward FLOPs per token of a decoder or encoder: 6·N + 12·L·H·Q·T (PaLM, Chowdhery et al. 2022, app. B).

    None for an architecture to which this does not apply: one without attention heads, or with an encoder and a decoder.
    N: matmul parameters, L: layers, H·Q: heads times head size, T: seq_len; causal attention is counted in full.

    >>> from transformers import GPT2Config
    >>> round(flops_per_token(GPT2Config(), 12 * 7_077_888 + 50257 * 768, 1024) / 1e6)
    854
    """
    if not hasattr(config, "num_attention_heads") or config.is_encoder_decoder:
        return None
    head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head_size * seq_len
    return float(6 * num_matmul + 12 * attention)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a device: from the table on GPUs (None where it isn't listed), a measured matmul on CPUs."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAKS.items() if part in name), None)
    return _measured_matmul(dtype)


def _measured_matmul(dtype: torch.dtype, size: int = 1024, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of some square matmuls."""
    a = torch.ones(size, size, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
