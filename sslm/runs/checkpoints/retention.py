"""Which checkpoints are kept: the last ones, the best ones, and every N-th for good."""

from collections.abc import Mapping

from sslm.config import CheckpointConfig


def expired(metrics: Mapping[int, float | None], step: int, when: CheckpointConfig) -> list[int]:
    """Return the steps whose checkpoints may be removed, now that the one of `step` is written.

    Args:
        metrics: step -> what the checkpoint's metric was; None: not measured there.
        step: newest step; later checkpoints belong to another course of the run and stay.

    >>> expired({100: 3.0, 200: 2.0, 300: 2.5, 400: 2.6}, 400, CheckpointConfig(keep_last=1, keep_best=1))
    [100, 300]
    """
    past = sorted(number for number in metrics if number <= step)
    if when.keep_last is None:
        return []
    keep = set(past[-when.keep_last :])
    if when.keep_best is not None:
        better = -1.0 if when.best_is == "highest" else 1.0
        measured = [(better * value, number) for number in past if (value := metrics[number]) is not None]
        keep |= {number for _, number in sorted(measured)[: when.keep_best]}
    if when.keep_every_steps is not None:
        keep |= {number for number in past if number % when.keep_every_steps == 0}
    return [number for number in past if number not in keep]
