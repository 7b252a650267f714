"""What a quality rule is, and what it says of a document."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.config.setting import Section
from sslm.system.errors import UserError


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


Measures = Iterable[tuple[str, NDArray[Any]]]
"""(setting, [documents] the measure that it bounds), in the order in which documents are judged."""


@dataclass(frozen=True)
class Rule(Section):
    """A quality rule; its fields are its thresholds, of which None switches one off.

    Raises:
        UserError: a threshold is out of its range, or a text is empty.
    """

    drops_at_threshold: ClassVar[bool] = False
    """Whether a document is dropped whose measure equals the threshold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers()
        for leaf in dataclasses.fields(self):
            if getattr(self, leaf.name) == "":
                raise UserError(f"--{self.prefix}.{leaf.name} needs a value; it is empty")

    def judge(self, texts: Sequence[str]) -> list[Judged]:
        """Judge each document of a block by itself; the others change nothing but the speed."""
        raise NotImplementedError

    def first_failures(self, measures: Measures, num_documents: int) -> dict[int, Failure]:
        """Find the documents with a measure beyond its threshold: below min_…, or above max_….

        Args:
            measures: are taken only while there is a document that passes.

        Returns:
            document's number -> the first of its measures that is.
        """
        failures: dict[int, Failure] = {}
        passes = np.ones(num_documents, bool)
        for setting, values in measures:
            if (threshold := getattr(self, setting)) is None:
                continue
            is_beyond = values < threshold if setting.startswith("min_") else values > threshold
            if self.drops_at_threshold:
                is_beyond |= values == threshold
            for number in np.flatnonzero(is_beyond & passes).tolist():
                failures[number] = Failure(f"{self.prefix}.{setting}", float(values[number]), threshold)
            passes &= ~is_beyond
            if not passes.any():
                break
        return failures
