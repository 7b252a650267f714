"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6), which follow Gopher's and C4's there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslm.config.setting import NOT_NEGATIVE, SHARE, setting
from sslm.data.cleaning.rules.characters import SENTENCE_ENDS
from sslm.data.cleaning.rules.judged import Judged, Measures, Rule
from sslm.data.cleaning.rules.lines import copied, shares


@dataclass(frozen=True)
class FineWeb(Rule):
    """Lists, menus and lines that repeat are dropped; lines of white space alone don't count.

    As in the paper, a document at a threshold is dropped, too: 0 and 1 are thresholds that drop, null is off. Of the
    characters in duplicate lines the paper says 0.1 in section 3.6 and 0.01 in its table 2; datatrove, by which FineWeb
    was made, has 0.01. datatrove keeps what is at a threshold, takes lines of 30 characters for short, too, and has a
    rule that the paper has not: line ends a word. Nothing is measured by words, and end_marks are of all scripts; but
    Thai has none, so its texts are dropped unless min_punctuated_lines is null.
    """

    prefix = "fineweb"
    drops_at_threshold = True

    min_punctuated_lines: float | None = setting(0.12, SHARE)
    """Share of lines that end in one of end_marks; a document with no more is dropped (section 3.6)."""
    end_marks: str = SENTENCE_ENDS
    """Characters that end a line in punctuation; the paper lists none. Default: datatrove's, ends of sentences in all
    scripts; quotation marks are not among them."""
    max_short_lines: float | None = setting(0.67, SHARE)
    """Share of short lines; a document with as many is dropped (section 3.6)."""
    short_line: int = setting(30, NOT_NEGATIVE)
    """A line is short if it has fewer characters (section 3.6)."""
    max_duplicate_line_chars: float | None = setting(0.01, SHARE)
    """Share of characters in lines that stood before in the document; one with as many is dropped (table 2)."""

    def judge(self, texts: Sequence[str]) -> list[Judged]:
        failures = self.first_failures(self._measures(texts), len(texts))
        return [Judged(text, failures.get(number)) for number, text in enumerate(texts)]

    def _measures(self, texts: Sequence[str]) -> Measures:
        lines = [[line for line in text.split("\n") if line and not line.isspace()] for text in texts]
        end_marks = frozenset(self.end_marks)
        yield "min_punctuated_lines", shares(lines, lambda line: line[-1] in end_marks)
        yield "max_short_lines", shares(lines, lambda line: len(line) < self.short_line)
        chars = np.array([len(text) - text.count("\n") for text in texts])
        yield "max_duplicate_line_chars", np.array([copied(some)[1] for some in lines]) / np.maximum(chars, 1)
