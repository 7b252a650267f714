"""A figure and its standard error: of a ratio of sums, one pair of numbers a document."""

import math
from dataclasses import dataclass
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
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.num += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.xy += x * y
        self.yy += y * y

    def estimate(self) -> Estimate:
        """Return the ratio, not a number if there is nothing to divide by."""
        if not self.y:
            return Estimate(math.nan, math.nan)
        ratio = self.x / self.y
        if self.num < 2:
            return Estimate(ratio, math.nan)
        squares = max(self.xx - 2 * ratio * self.xy + ratio * ratio * self.yy, 0.0)
        return Estimate(ratio, math.sqrt(squares * self.num / (self.num - 1)) / self.y)
