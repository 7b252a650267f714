"""Optimizer steps and the positions at which they begin, whether batches are of one size or grow.

Beyond a critical size a larger batch teaches hardly more per step. That size is small at first and grows (McCandlish
et al. 2018, arXiv:1812.06162; Merrill et al. 2025, arXiv:2505.23971), so batches may grow with it, as GPT-3's did
(Brown et al. 2020, arXiv:2005.14165).
"""

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from sslm.config.ramp import Ramp


class Leg(NamedTuple):
    """Steps of one size."""

    step: int
    """Its first, from 0."""
    position: int
    """Of that step's first example."""
    size: int
    """Examples per step."""

    def position_at(self, step: int) -> int:
        return self.position + (step - self.step) * self.size


@dataclass(frozen=True)
class BatchSizes:
    """How many examples each step of a run takes.

    A stage of the ramp begins with the first step that begins at its tokens or later. So how a run goes on follows from
    where it is, whatever batches it has had.
    """

    legs: tuple[Leg, ...]
    """In order; steps before the first are counted as if they had been of its size."""

    @classmethod
    def even(cls, size: int) -> "BatchSizes":
        """All of one size."""
        return cls((Leg(0, 0, size),))

    @classmethod
    def of(cls, ramp: Ramp, seq_len: int, step: int = 0, position: int = 0) -> "BatchSizes":
        """Sizes of the batches of a run that goes on from a step at a position.

        >>> from sslm.config.ramp import parse_ramp
        >>> BatchSizes.of(parse_ramp("batch_size", "2, 4 from 900 tokens"), seq_len=100).legs
        (Leg(step=0, position=0, size=2), Leg(step=5, position=10, size=4))
        """
        legs = [Leg(step, position, ramp.at(position * seq_len))]
        for from_tokens, _ in ramp.stages:
            step, position, size = legs[-1]
            steps = -(-(-(-from_tokens // seq_len) - position) // size)
            if steps > 0:
                position += steps * size
                legs.append(Leg(step + steps, position, ramp.at(position * seq_len)))
        return cls(tuple(legs))

    def leg_at(self, step: int) -> Leg:
        return self.legs[max(bisect_right(self.legs, step, key=attrgetter("step")) - 1, 0)]

    def position_at(self, step: int) -> int:
        """Find the position of a step's first example; its end is the next step's."""
        return self.leg_at(step).position_at(step)

    def step_at(self, position: int) -> int:
        """Count the steps that end at a position or before it."""
        leg = self._leg_with(position)
        return leg.step + (position - leg.position) // leg.size

    def nearest_step(self, position: float) -> int:
        """Count the steps up to the one that ends nearest to a position."""
        leg = self._leg_with(position)
        return leg.step + round((position - leg.position) / leg.size)

    def _leg_with(self, position: float) -> Leg:
        return self.legs[max(bisect_right(self.legs, position, key=attrgetter("position")) - 1, 0)]
