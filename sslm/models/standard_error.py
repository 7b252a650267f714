"""A figure and its standard error: of a ratio of sums, one pair of numbers a document."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    stderr: float
    """Not a number if there are fewer than two documents: nothing tells then how much another text would differ."""

    def scaled(self, by: float) -> "Estimate":
        return Estimate(self.value * by, self.stderr * by)

    def exp(self) -> "Estimate":
        """The exponential, its error by the delta method; infinite if it is too large for a float."""
        value = math.exp(self.value) if self.value < 709 else self.value * math.inf
        return Estimate(value, value * self.stderr)


class ExactSum:
    """A sum of floats that is exact until it is asked for, so that no order of adding makes another one.

    It is kept in parts that don't overlap (Shewchuk 1997, "Adaptive precision floating-point arithmetic").

    >>> total = ExactSum()
    >>> for number in (0.1, 1e16, -1e16):
    ...     total.add(number)
    >>> total.value()
    0.1
    """

    def __init__(self) -> None:
        self.parts: list[float] = []

    def add(self, number: float) -> None:
        parts, number = self.parts, float(number)
        kept = 0
        for part in parts:
            if abs(number) < abs(part):
                number, part = part, number
            high = number + part
            if low := part - (high - number):
                parts[kept] = low
                kept += 1
            number = high
        parts[kept:] = [number]

    def value(self) -> float:
        return math.fsum(self.parts) if all(map(math.isfinite, self.parts)) else math.nan


@dataclass
class Ratio:
    """Sum of x over sum of y, one pair a document.

    Documents are what is drawn: the tokens of one are alike, and taken for independent they would give too small an
    error. The variance is that of a ratio of means, linearised (Cochran 1977, "Sampling Techniques", section 6.4).

    >>> loss = Ratio()
    >>> loss.add(6.0, 2.0)
    >>> loss.add(2.0, 2.0)
    >>> loss.estimate()
    Estimate(value=2.0, stderr=1.0)
    """

    num: int = 0
    x: ExactSum = field(default_factory=ExactSum)
    y: ExactSum = field(default_factory=ExactSum)
    xx: ExactSum = field(default_factory=ExactSum)
    xy: ExactSum = field(default_factory=ExactSum)
    yy: ExactSum = field(default_factory=ExactSum)

    def add(self, x: float, y: float) -> None:
        self.num += 1
        for total, number in ((self.x, x), (self.y, y), (self.xx, x * x), (self.xy, x * y), (self.yy, y * y)):
            total.add(number)

    def estimate(self) -> Estimate:
        """Return the ratio, not a number if there is nothing to divide by."""
        x, y, xx, xy, yy = (total.value() for total in (self.x, self.y, self.xx, self.xy, self.yy))
        if not y:
            return Estimate(math.nan, math.nan)
        ratio = x / y
        if self.num < 2:
            return Estimate(ratio, math.nan)
        squares = max(xx - 2 * ratio * xy + ratio * ratio * yy, 0.0)
        return Estimate(ratio, math.sqrt(squares * self.num / (self.num - 1)) / y)
