"""Anomalous steps: their loss or gradient norm is not finite, or stands far above those of the last steps.

What is found depends on the numbers alone, and the detector's state is plain JSON: a run that goes on from a checkpoint
finds what an uninterrupted one would have found.
"""

import math
from collections import deque
from statistics import median
from typing import Any, NamedTuple

from sslm.config import AnomalyConfig

WINDOW = 128
"""Good steps that a step is compared with."""
FEWEST = 32
"""With fewer there are no spikes."""
MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation (Hampel 1974)."""
LEAST_LOSS_SPREAD, LEAST_NORM_SPREAD = 0.01, 0.4
"""Floors of the standard deviation of the loss [as a share of it] and of the gradient norm's logarithm.

Norms have heavy tails: healthy runs had single norms of 15 times the median, where the others' deviation was 0.06.
"""
SMALLEST_NORM = 1e-30


class Anomaly(NamedTuple):
    """An anomalous step."""

    kind: str
    """In words: `loss is nan`, `grad norm spike, z 23.1`."""
    loss: float
    """Mean over the global batch's targets."""
    grad_norm: float
    is_finite: bool


class AnomalyDetector:
    """Observes a run's steps one after the other, and counts the anomalous ones in a row."""

    def __init__(self, settings: AnomalyConfig) -> None:
        self.settings, self.detector = settings, SpikeDetector(settings.spike_z)
        self.last: Anomaly | None = None
        """The last step's anomaly, or None if it had none."""
        self.streak = 0
        """How many last steps in a row the run can't go on with; if updates are withheld, the weights are older."""
        self._patience = settings.patience

    @property
    def is_on(self) -> bool:
        return self.settings.action != "off"

    def observe(self, loss: float, grad_norm: float, is_withheld: bool, is_scale_at_fault: bool = False) -> None:
        """Judge a step, and remember what was found in `last` and `streak`.

        Args:
            loss: mean over the global batch's targets.
            grad_norm: before clipping.
            is_withheld: whether an anomalous update is left out. If it can't be, only what is not finite counts, at
                once.
            is_scale_at_fault: whether an fp16 gradient has overflowed. The loss will be scaled less; the step is not
                judged.
        """
        self.last = None if is_scale_at_fault else self.detector.judge(loss, grad_norm)
        self._patience = self.settings.patience if is_withheld else 1
        counts = self.last is not None and (is_withheld or not self.last.is_finite)
        self.streak = self.streak + 1 if counts else 0

    @property
    def must_rewind(self) -> bool:
        """Whether the run is to go back before the last steps."""
        return self.settings.action == "rewind" and self.streak >= self._patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the same anomalies are found later on."""
        return self.detector.state()

    def load(self, state: dict[str, Any]) -> None:
        self.detector.load(state)
        self.streak, self.last = 0, None


class SpikeDetector:
    """Remembers good steps, and judges others by them.

    A spike is a loss, or a logarithm of the gradient norm, whose robust z-score is above `spike_z`: its distance from
    the window's median, in standard deviations made from the median absolute deviation. Low values are no anomaly.

    Args:
        spike_z: the limit, or None if only what is not finite is an anomaly.

    >>> detector = SpikeDetector(spike_z=8.0)
    >>> [detector.judge(loss=3.0 + step % 2 / 10, grad_norm=1.0) for step in range(40)] == [None] * 40
    True
    >>> detector.judge(loss=3.4, grad_norm=1.0) is None
    True
    >>> detector.judge(loss=4.5, grad_norm=1.0).kind
    'loss spike, z 9.4'
    >>> detector.judge(loss=3.0, grad_norm=float("inf")).kind
    'grad norm is inf'
    """

    def __init__(self, spike_z: float | None) -> None:
        self.spike_z = spike_z
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        """Natural logarithms."""

    def judge(self, loss: float, grad_norm: float) -> Anomaly | None:
        """Say what is wrong with a step, or remember it and return None."""
        kind = self._kind(loss, grad_norm)
        if kind is not None:
            return Anomaly(kind, loss, grad_norm, math.isfinite(loss) and math.isfinite(grad_norm))
        self.losses.append(loss)
        self.norms.append(_log(grad_norm))
        return None

    def forget(self) -> None:
        """Forget all steps: those to come are of another kind (another mixture)."""
        self.losses.clear()
        self.norms.clear()

    def _kind(self, loss: float, grad_norm: float) -> str | None:
        for name, value in (("loss", loss), ("grad norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        if self.spike_z is None or len(self.losses) < FEWEST:
            return None
        for name, score in zip(("loss", "grad norm"), self.scores(loss, grad_norm), strict=True):
            if score > self.spike_z:
                return f"{name} spike, z {score:.1f}"
        return None

    def scores(self, loss: float, grad_norm: float) -> tuple[float, float]:
        """Robust z-scores of loss and gradient norm."""
        return (
            robust_z(loss, self.losses, LEAST_LOSS_SPREAD * abs(median(self.losses))),
            robust_z(_log(grad_norm), self.norms, LEAST_NORM_SPREAD),
        )

    # -------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": list(self.losses), "log_grad_norms": list(self.norms)}

    def load(self, state: dict[str, Any]) -> None:
        self.forget()
        self.losses.extend(state.get("losses", []))
        self.norms.extend(state.get("log_grad_norms", []))


def robust_z(value: float, known: "deque[float]", least_spread: float) -> float:
    """A value's distance from the known values' median, in robust standard deviations of at least `least_spread`."""
    middle = median(known)
    spread = MAD_TO_SIGMA * median(abs(other - middle) for other in known)
    return (value - middle) / max(spread, least_spread, 1e-12)


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, SMALLEST_NORM))
