"""Learning-rate schedules: pure functions of the step, so that nothing of them is saved."""

import math

from sslm.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The rate of optimizer step `step` (0-based) of `total_steps`: linear warm-up, then the schedule's share.

    >>> learning_rate(0, 100, OptimConfig(lr=1.0, warmup_steps=10))
    0.1
    >>> learning_rate(99, 100, OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd", min_lr_ratio=0.0))
    0.05
    """
    assert optim.lr is not None
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant" or optim.name == "schedule_free":
        return optim.lr
    if optim.schedule == "inverse_sqrt":
        return optim.lr * max(inverse_sqrt(step, optim.warmup_steps), optim.min_lr_ratio)
    if optim.schedule == "wsd":
        share = trapezoid(step, total_steps, optim.decay_fraction)
    else:
        done = min((step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1), 1.0)
        share = 1 - done if optim.schedule == "linear" else cosine(done, optim.cycles)
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * share)


def cosine(done: float, cycles: int = 1) -> float:
    """Fall from 1 to 0 in half a cosine, so many times (SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        done: share of the run after warm-up, from 0 to 1.
        cycles: equal parts of the run, each of which begins at 1 again.

    >>> [round(cosine(done), 2) for done in (0, 0.25, 0.5, 1)]
    [1.0, 0.85, 0.5, 0.0]
    >>> [round(cosine(done, cycles=2), 2) for done in (0, 0.25, 0.5, 1)]
    [1.0, 0.5, 1.0, 0.0]
    """
    part = done if done == 1 else done * cycles % 1
    return 0.5 * (1 + math.cos(math.pi * part))


def trapezoid(step: int, total_steps: int, decay_fraction: float) -> float:
    """Stay at 1 until the last `decay_fraction` of the run, then fall linearly to 0 (WSD, Hu et al. 2024,
    arXiv:2404.06395; with the warm-up before it, it is the trapezoid of Zhai et al. 2022, arXiv:2106.04560).

    >>> [trapezoid(step, 100, 0.2) for step in (0, 80, 90, 100)]
    [1.0, 1.0, 0.5, 0.0]
    """
    decay_steps = max(round(total_steps * decay_fraction), 1)
    return max(min((total_steps - step) / decay_steps, 1.0), 0.0)


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """Fall with the root of the step, whatever the run's length (Vaswani et al. 2017, arXiv:1706.03762).

    >>> [inverse_sqrt(step, warmup_steps=100) for step in (99, 399, 9999)]
    [1.0, 0.5, 0.1]
    """
    return math.sqrt(max(warmup_steps, 1) / (step + 1))
