"""What a quality rule is, and what it says of a document."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sslm.config.setting import Section
from sslm.system.errors import UserError, short


class Failure(NamedTuple):
    """Why a document is dropped."""

    rule: str
    """Setting that drops it: gopher.min_words."""
    value: float
    """What was measured."""
    threshold: float
    """The setting's value."""


class Judged(NamedTuple):
    """A document as a rule leaves it."""

    text: str
    """The text, edited if the rule edits; of a dropped document the text that was given."""
    failure: Failure | None
    """The first threshold that the document does not pass; None if it is kept."""


@dataclass(frozen=True)
class Rule(Section):
    """A quality rule; its fields are its thresholds, of which None switches one off.

    Raises:
        UserError: a threshold is out of its range.
    """

    drops_at_threshold: ClassVar[bool] = False
    """Whether a document is dropped whose measure equals the threshold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for leaf in dataclasses.fields(self):
            value, numbers = getattr(self, leaf.name), leaf.metadata.get("numbers")
            if numbers and value is not None and not numbers.contains(value):
                raise UserError(f"--{self.prefix}.{leaf.name} {short(value)}: expected {numbers.words}")

    def judge(self, texts: Sequence[str]) -> list[Judged]:
        """Judge each document of a block by itself; the others change nothing but the speed."""
        raise NotImplementedError

    def failing(self, setting: str, values: ArrayLike) -> Iterator[tuple[int, Failure]]:
        """Find the documents whose measure is beyond a threshold.

        Args:
            setting: min_…, which the measure must reach, or max_…, which it must not exceed.
            values: [documents] the measure.

        Returns:
            (document's number, failure).
        """
        threshold = getattr(self, setting)
        if threshold is None:
            return
        measured = np.asarray(values, np.float64)
        is_beyond = measured < threshold if setting.startswith("min_") else measured > threshold
        if self.drops_at_threshold:
            is_beyond |= measured == threshold
        for number in np.flatnonzero(is_beyond).tolist():
            yield number, Failure(f"{self.prefix}.{setting}", float(measured[number]), threshold)
