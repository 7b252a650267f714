"""Quality rules measure what their sources define; the case of each threshold is counted by hand."""

import dataclasses
from pydoc_data.topics import topics
from string import ascii_lowercase

import pytest

from sslm.data.cleaning.rules import RULES, Failure, Judged, Rule
from sslm.data.cleaning.rules.gopher import Gopher
from sslm.system.errors import UserError

GOPHER = {
    "min_words": (3, "- one two !", 2),
    "max_words": (1, "one two", 2),
    "min_mean_word_length": (3, "a bcd - e", 5 / 3),
    "max_mean_word_length": (2, "abc -", 3),
    "max_symbols_per_word": (0.1, "# a … ...", 2 / 4),
    "max_bullet_lines": (0.4, "• a\n - b\nc", 2 / 3),
    "max_ellipsis_lines": (0.3, "a… \nb...\nc", 2 / 3),
    "min_alphabetic_words": (0.8, "a 1 b2 !", 2 / 4),
    "min_stop_words": (2, "the the The", 1),
    "max_duplicate_paragraphs": (0.3, "a\n\nb\n\n\na", 1 / 3),
    "max_duplicate_paragraph_chars": (0.2, "aaaa\n\nb\n\naaaa", 4 / 13),
    "max_duplicate_lines": (0.2, "a\nb\n\na\n", 1 / 4),
    "max_duplicate_line_chars": (0.2, "aaaa\nb\naaaa", 4 / 11),
    "max_top_2gram": (0.2, "a b c a b d", 2 * 3 / 11),
    "max_top_3gram": (0.18, "a b c d a b c", 2 * 5 / 13),
    "max_top_4gram": (0.16, "a b c d e a b c d", 2 * 7 / 17),
} | {f"max_duplicate_{n}grams": (0.1, " ".join(list(ascii_lowercase[:n]) * 2), n / (4 * n - 1)) for n in range(5, 11)}
CASES = [(Gopher, name, *case) for name, case in GOPHER.items()]
ODD = ["", " ", "\n\n\n", "word", "\ud800 \udfff", "\0 \0\0", "🦜" * 300, "深度学习" * 2000, "ภาษาไทย" * 500, "a " * 99]


def with_one_threshold(kind: type[Rule], name: str, threshold: float) -> Rule:
    off = {leaf.name: None for leaf in dataclasses.fields(kind) if leaf.metadata.get("numbers")}
    return kind(**off | {name: threshold})


@pytest.mark.parametrize(("kind", "name", "threshold", "text", "value"), CASES)
def test_a_text_beyond_a_threshold_is_dropped_with_its_measure(
    kind: type[Rule], name: str, threshold: float, text: str, value: float
) -> None:
    [judged] = with_one_threshold(kind, name, threshold).judge([text])
    assert judged == Judged(text, Failure(f"{kind.prefix}.{name}", pytest.approx(value), threshold))
    assert with_one_threshold(kind, name, value).judge([text])[0].failure is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_duplicate_5grams", 10 / 23), ("max_top_2gram", 11 * 3 / 23)],
    ids=["all count once", "the most frequent counts each time"],
)
def test_runs_that_overlap(name: str, value: float) -> None:
    text = " ".join("a" * 12)
    assert with_one_threshold(Gopher, name, 0.1).judge([text])[0].failure == Failure(f"gopher.{name}", value, 0.1)


@pytest.mark.parametrize("kind", RULES.values())
def test_a_document_is_judged_by_itself(kind: type[Rule]) -> None:
    texts = ODD + [text * 2 for text in topics.values()] + [text[:300] for text in topics.values()]
    assert kind().judge(texts) == [judged for text in texts for judged in kind().judge([text])]
    assert kind().judge([]) == []


@pytest.mark.parametrize("kind", RULES.values())
def test_a_threshold_out_of_its_range_is_refused(kind: type[Rule]) -> None:
    for leaf in dataclasses.fields(kind):
        if leaf.metadata.get("numbers"):
            with pytest.raises(UserError, match=f"^--{kind.prefix}.{leaf.name} -1: expected "):
                kind(**{leaf.name: -1})
