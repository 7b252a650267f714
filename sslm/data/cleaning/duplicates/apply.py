"""A block's texts without what goes."""

from collections.abc import Sequence
from itertools import accumulate, groupby

from sslm.data.cleaning.duplicates.decision import KEPT, Decision
from sslm.data.cleaning.duplicates.words import words_of

Span = tuple[int, int]
"""From a character, to before another."""


def apply(texts: Sequence[str], decision: Decision) -> list[str | None]:
    """Remove what a decision says: None for a document that goes, or of which nothing is left.

    At the ends of a text from which lines or passages went, white space goes too; other texts stay as they are.
    """
    lines, passages = _by_text(decision["lines"].tolist()), _by_text(decision["passages"].tolist())
    return [
        _without(text, _line_spans(text, lines.get(number, [])) + _word_spans(text, passages.get(number, [])))
        if fate == KEPT
        else None
        for number, (text, fate) in enumerate(zip(texts, decision["fate"].tolist(), strict=True))
    ]


def _by_text(rows: list[list[int]]) -> dict[int, list[list[int]]]:
    return {text: [rest for _, *rest in some] for text, some in groupby(rows, key=lambda row: row[0])}


def _line_spans(text: str, lines: list[list[int]]) -> list[Span]:
    if not lines:
        return []
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    return [(starts[line], starts[line + 1]) for [line] in lines]


def _word_spans(text: str, passages: list[list[int]]) -> list[Span]:
    """Passages reach to the next word."""
    if not passages:
        return []
    starts = [*words_of([text], fold=False).starts.tolist(), len(text)]
    return [(starts[first], starts[end]) for first, end in passages]


def _without(text: str, spans: list[Span]) -> str | None:
    if not spans:
        return text
    kept, after = [], 0
    for start, end in sorted(spans):
        kept.append(text[after:start])
        after = max(after, end)
    return "".join([*kept, text[after:]]).strip() or None
