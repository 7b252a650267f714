"""What all ranks know of a step before they take it, by the step's one small collective."""

from typing import NamedTuple


class StepTotals(NamedTuple):
    """What all ranks know of a step before they take it."""

    scored: list[int]
    """Targets of the global batch, per source."""
    digest: int
    """Of the global batch."""
    stop: bool
    save: bool
    save_failed: bool

    @property
    def all_scored(self) -> int:
        """At least 1: a batch without any target has loss 0."""
        return max(sum(self.scored), 1)


def as_int64(word: int) -> int:
    """Reinterpret 64 unsigned bits as signed: sums wrap around alike."""
    return word - (1 << 64) if word >= 1 << 63 else word
