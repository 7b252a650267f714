"""Optimizer steps and the positions at which they begin, whether batches are of one size or grow, and so for sequences.

Beyond a critical size a larger batch teaches hardly more per step. That size is small at first and grows (McCandlish
et al. 2018, arXiv:1812.06162; Merrill et al. 2025, arXiv:2505.23971), so batches may grow with it, as GPT-3's did
(Brown et al. 2020, arXiv:2005.14165). Sequences that are short at first make training steadier (Li et al. 2021,
arXiv:2108.06084) and cheaper (BERT; Devlin et al. 2018, arXiv:1810.04805): windows, and with them positions, order and
epochs, are those of the longest, and are cut into pieces.
"""

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from sslm.config.ramp import Ramp


class Leg(NamedTuple):
    """Steps of one size, with sequences of one length."""

    step: int
    """Its first, from 0."""
    position: int
    """Of that step's first example."""
    size: int
    """Examples per step."""
    seq_len: int | None = None
    """Tokens of the sequences into which each example's window is cut; None if windows stay whole."""
    pieces: int = 1
    """Sequences per example."""

    def position_at(self, step: int) -> int:
        return self.position + (step - self.step) * self.size

    @property
    def rows(self) -> int:
        """Sequences per step."""
        return self.size * self.pieces


@dataclass(frozen=True)
class BatchSizes:
    """How many examples each step of a run takes, and whether they are cut.

    A stage of a ramp begins with the first step that begins at its tokens or later. So how a run goes on follows from
    where it is, whatever batches it has had.
    """

    legs: tuple[Leg, ...]
    """In order; steps before the first are counted as if they had been of its size."""

    @classmethod
    def even(cls, size: int) -> "BatchSizes":
        """All of one size."""
        return cls((Leg(0, 0, size),))

    @classmethod
    def of(cls, sizes: Ramp, lengths: Ramp, step: int = 0, position: int = 0) -> "BatchSizes":
        """Sizes of the batches of a run that goes on from a step at a position.

        >>> from sslm.config.ramp import parse_lengths, parse_ramp
        >>> sizes = BatchSizes.of(parse_ramp("batch_size", "2, 4 from 900 tokens"), parse_lengths(100))
        >>> [leg[:3] for leg in sizes.legs]
        [(0, 0, 2), (5, 10, 4)]
        """
        longest = lengths.largest

        def leg(step: int, position: int) -> Leg:
            tokens = position * longest
            seq_len = lengths.at(tokens)
            short = None if seq_len == longest else seq_len
            return Leg(step, position, sizes.at(tokens), short, longest // seq_len)

        legs = [leg(step, position)]
        for from_tokens in sorted({stage.from_tokens for stage in (*sizes.stages, *lengths.stages)}):
            last = legs[-1]
            steps = -(-(-(-from_tokens // longest) - last.position) // last.size)
            if steps > 0:
                legs.append(leg(last.step + steps, last.position_at(last.step + steps)))
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
