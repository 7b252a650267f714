"""Optimizer and learning-rate schedules; a schedule is a pure function of the step."""

import math

import torch
from torch import nn

from sslm.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The rate of optimizer step `step` (0-based) of `total_steps`.

    Linear warm-up, then one of: cosine to `min_lr_ratio` (Loshchilov & Hutter 2017, arXiv:1608.03983); WSD, constant until
    the last `decay_fraction`, then linear (Hu et al. 2024, arXiv:2404.06395); constant.

    >>> learning_rate(0, 100, OptimConfig(lr=1.0, warmup_steps=10))
    0.1
    >>> learning_rate(99, 100, OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd", min_lr_ratio=0.0))
    0.05
    """
    assert optim.lr is not None
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "cosine":
        done = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
        share = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    elif optim.schedule == "wsd":
        decay_steps = max(round(total_steps * optim.decay_fraction), 1)
        share = min((total_steps - step) / decay_steps, 1.0)
    else:
        share = 1.0
    return (
        optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * max(share, 0.0))
        if optim.schedule != "constant"
        else optim.lr
    )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (norms, biases) don't."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused on GPUs."""
    assert optim.lr is not None
    on_gpu = any(p.device.type == "cuda" for p in module.parameters())
    return torch.optim.AdamW(
        parameter_groups(module, optim.weight_decay), lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps,
        fused=on_gpu,
    )  # fmt: skip
