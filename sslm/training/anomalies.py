"""Anomalous steps: their loss or gradient norm is not finite, or stands far above those of the last steps.

The device judges a step and withholds its update; the host learns of it up to two steps later, so that it never waits.
What is found depends on the numbers alone, and the detector's state is plain JSON: a run that goes on from a checkpoint
finds what an uninterrupted one would have found.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from sslm.config import AnomalyConfig

LAG = 2
"""Steps after which it is known how a step went: step s is judged by the good steps up to s - LAG."""
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
LARGEST = sys.float_info.max

Numbers = Callable[[], Sequence[float]]
"""Gives a step's mean loss over the global batch's targets, and its gradient norm before clipping."""


class Anomaly(NamedTuple):
    """An anomalous step."""

    step: int
    """Counted from 1, as in metrics.jsonl."""
    kind: str
    """In words: `loss is nan`, `grad norm spike, z 23.1`."""
    loss: float
    """Mean over the global batch's targets."""
    grad_norm: float
    action: str
    """`rewind`: the run is to go back; `skip`: its update is left out; `none`: its update was made."""


class Limits(NamedTuple):
    """Largest loss and gradient norm of a step that is no anomaly."""

    loss: float = LARGEST
    grad_norm: float = LARGEST


class Usual(NamedTuple):
    """Median and standard deviation, robust, of good steps' losses and of their gradient norms' logarithms."""

    loss: float
    loss_spread: float
    log_norm: float
    log_norm_spread: float

    def limits(self, spike_z: float) -> Limits:
        log_norm = self.log_norm + spike_z * self.log_norm_spread
        norm = math.exp(log_norm) if log_norm < math.log(LARGEST) else LARGEST
        return Limits(min(self.loss + spike_z * self.loss_spread, LARGEST), norm)


class _Judged(NamedTuple):
    """A step whose outcome the host does not know yet."""

    step: int
    """Counted from 0."""
    usual: Usual | None
    """What it is judged by: None if only what is not finite is an anomaly."""
    begins_stage: bool
    numbers: Numbers


class AnomalyDetector:
    """Says how each step is judged, observes the outcomes in the same order, and counts the anomalous ones in a row.

    A spike is a loss, or a logarithm of the gradient norm, whose robust z-score is above `spike_z`: its distance from
    the median of the good steps that were known then, in standard deviations made from the median absolute deviation.
    Low values are no anomaly.

    >>> detector = AnomalyDetector(AnomalyConfig(spike_z=8.0, patience=3))
    >>> for step in range(40):
    ...     limits = detector.judge(step, lambda: (3.0, 1.0))
    >>> detector.learn(before=40)
    >>> round(detector.judge(40, lambda: (4.5, 1.0)).loss, 2)
    3.24
    >>> detector.learn(before=41)
    >>> detector.last.kind
    'loss spike, z 50.0'
    """

    def __init__(self, settings: AnomalyConfig) -> None:
        self.settings, self.good_steps = settings, GoodSteps()
        self.can_withhold = True
        """Whether anomalous updates are left out. If they can't be, only what is not finite counts, at once."""
        self.scales_loss = False
        """Whether a gradient that overflows is the loss scale's fault: the step is then not judged."""
        self.news: list[Anomaly] = []
        """Anomalies learned of, until whoever reports them clears this."""
        self._begin([None] * LAG)

    def _begin(self, upcoming: "Sequence[Usual | None]") -> None:
        self.last: Anomaly | None = None
        """The last observed step's anomaly, or None if it had none."""
        self.streak = 0
        """How many last observed steps the run can't go on with; if updates are withheld, the weights are older."""
        self.news.clear()
        self._upcoming = deque(upcoming)
        """What the next steps are judged by."""
        self._judged: deque[_Judged] = deque()
        self._streak_judged: list[Usual | None] = []
        """What the streak's steps were judged by: they come again if the run goes on from a checkpoint."""
        self._is_stale = False
        """Whether the good steps are of another mixture than those to come."""

    @property
    def is_on(self) -> bool:
        return self.settings.action != "off"

    def judge(self, step: int, numbers: Numbers, begins_stage: bool = False) -> Limits:
        """Say how a step is judged; called once for each, in order.

        What it is judged by is what was known LAG steps before, so that step is observed first if it was not yet.

        Args:
            step: counted from 0.
            numbers: the step's outcome, which is asked for later.
            begins_stage: whether the mixture's weights change in this step: earlier ones are no measure of it.
        """
        self.learn(before=step - LAG + 1)
        if begins_stage:
            self._upcoming = deque([None] * len(self._upcoming))
        usual = self._upcoming.popleft()
        self._judged.append(_Judged(step, usual, begins_stage, numbers))
        return self._limits(usual)

    def learn(self, before: int) -> None:
        """Observe the steps numbered below `before`, counted from 0; or stop earlier, if the run must go back."""
        while self._judged and self._judged[0].step < before:
            self._observe(self._judged.popleft())
            if self.must_rewind:
                return

    @property
    def must_rewind(self) -> bool:
        """Whether the run is to go back before the last observed steps."""
        patience = self.settings.patience if self.can_withhold else 1
        return self.settings.action == "rewind" and self.streak >= patience

    @property
    def num_unknown(self) -> int:
        """How many of the last steps were not observed yet."""
        return len(self._judged)

    def _observe(self, judged: _Judged) -> None:
        loss, norm = judged.numbers()
        overflowed = self.scales_loss and math.isfinite(loss) and not math.isfinite(norm)
        kind = None if overflowed else self._kind(loss, norm, judged.usual)
        self._is_stale |= judged.begins_stage
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if kind is not None and (self.can_withhold or not is_finite):
            self.streak += 1
            self._streak_judged.append(judged.usual)
        else:
            self.streak = 0
            self._streak_judged.clear()
            if self._is_stale:
                self.good_steps.forget()
                self._is_stale = False
            if kind is None and not overflowed:
                self.good_steps.remember(loss, norm)
        is_measure = not self._is_stale and not any(later.begins_stage for later in self._judged)
        self._upcoming.append(self.good_steps.usual() if is_measure else None)
        self.last = None
        if kind is not None:
            action = "rewind" if self.must_rewind else "skip" if self.streak else "none"
            self.last = Anomaly(judged.step + 1, kind, loss, norm, action)
            self.news.append(self.last)

    def _kind(self, loss: float, grad_norm: float, usual: Usual | None) -> str | None:
        for name, value in (("loss", loss), ("grad norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        limits = self._limits(usual)
        if usual is not None and loss > limits.loss:
            return f"loss spike, z {(loss - usual.loss) / usual.loss_spread:.1f}"
        if usual is not None and grad_norm > limits.grad_norm:
            return f"grad norm spike, z {(_log(grad_norm) - usual.log_norm) / usual.log_norm_spread:.1f}"
        return None

    def _limits(self, usual: Usual | None) -> Limits:
        if usual is None or self.settings.spike_z is None:
            return Limits()
        return usual.limits(self.settings.spike_z)

    # -------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the same anomalies are found later on."""
        next_ones = [*self._streak_judged, *(judged.usual for judged in self._judged), *self._upcoming][:LAG]
        return self.good_steps.state() | {"usual": [None if usual is None else list(usual) for usual in next_ones]}

    def load(self, state: dict[str, Any]) -> None:
        self.good_steps.load(state)
        known = [None if usual is None else Usual(*usual) for usual in state.get("usual", [])]
        self._begin(known if len(known) == LAG else [self.good_steps.usual()] * LAG)


class GoodSteps:
    """Losses and gradient norms of the last steps that were no anomalies."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.log_norms: deque[float] = deque(maxlen=WINDOW)
        """Natural logarithms."""

    def remember(self, loss: float, grad_norm: float) -> None:
        self.losses.append(loss)
        self.log_norms.append(_log(grad_norm))

    def forget(self) -> None:
        self.losses.clear()
        self.log_norms.clear()

    def usual(self) -> Usual | None:
        """What these steps are like, or None if they are too few to tell."""
        if len(self.losses) < FEWEST:
            return None
        loss, loss_spread = middle_and_spread(self.losses)
        log_norm, log_norm_spread = middle_and_spread(self.log_norms)
        least = max(LEAST_LOSS_SPREAD * abs(loss), 1e-12)
        return Usual(loss, max(loss_spread, least), log_norm, max(log_norm_spread, LEAST_NORM_SPREAD))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": list(self.losses), "log_grad_norms": list(self.log_norms)}

    def load(self, state: dict[str, Any]) -> None:
        self.forget()
        self.losses.extend(state.get("losses", []))
        self.log_norms.extend(state.get("log_grad_norms", []))


def middle_and_spread(values: "deque[float]") -> tuple[float, float]:
    """Median, and standard deviation as the median absolute deviation tells it."""
    ordered = sorted(values)
    middle = median(ordered)
    return middle, MAD_TO_SIGMA * median([abs(value - middle) for value in ordered])


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, SMALLEST_NORM))
