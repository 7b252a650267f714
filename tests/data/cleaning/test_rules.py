"""Quality rules measure what their sources define; the case of each threshold is counted by hand."""

import dataclasses
from pydoc_data.topics import topics
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning.rules import RULES, Failure, Judged, Rule
from sslm.data.cleaning.rules.c4 import C4
from sslm.data.cleaning.rules.fineweb import FineWeb
from sslm.data.cleaning.rules.gopher import Gopher
from sslm.system.errors import UserError
from sslm.system.typed import typed

GOPHER = {
    "min_words": (3, "- one two !", 2),
    "max_words": (1, "one two", 2),
    "min_mean_word_length": (3, "a bcd - e", 5 / 3),
    "max_mean_word_length": (2, "abc -", 3),
    "max_symbols_per_word": (0.1, "# a#b# … ...", 3 / 4),
    "max_bullet_lines": (0.4, "• a\n - b\nc", 2 / 3),
    "max_ellipsis_lines": (0.3, "a… \nb...\nc", 2 / 3),
    "min_alphabetic_words": (0.8, "a 1 b2 !", 2 / 4),
    "min_stop_words": (2, "the the The", 1),
    "max_duplicate_paragraphs": (0.3, "a\n\nb\n\n\na", 1 / 3),
    "max_duplicate_paragraph_chars": (0.2, "aaaa\n\nb\n\naaaa", 4 / 13),
    "max_duplicate_lines": (0.2, "a\nb\n\na\n", 1 / 4),
    "max_duplicate_line_chars": (0.2, "aaaa\nb\naaaa", 4 / 11),
    "max_top_2gram": (0.2, "a b cc dd cc dd", 2 * 5 / 15),
    "max_top_3gram": (0.18, "a b c d a b c", 2 * 5 / 13),
    "max_top_4gram": (0.16, "a b c d e a b c d", 2 * 7 / 17),
} | {f"max_duplicate_{n}grams": (0.1, " ".join(list(ascii_lowercase[:n]) * 2), n / (4 * n - 1)) for n in range(5, 11)}
C4_CASES = {"min_sentences": (3, 'This is one, "or so." Here another one ends!\nNo end', 2)}
FINEWEB = {
    "min_punctuated_lines": (0.5, "a.\nb\n \nc", 1 / 3),
    "max_short_lines": (0.5, f"a\nb\n{'c' * 30}", 2 / 3),
    "max_duplicate_line_chars": (0.1, "aa\nb\n\naa", 2 / 5),
}
CASES = [
    (kind, name, *case)
    for kind, cases in ((Gopher, GOPHER), (C4, C4_CASES), (FineWeb, FINEWEB))
    for name, case in cases.items()
]
GOOD = "The first of the lines ends.\nThe second one has an end!\nAnd does the third end, too?"
ODD = [
    "",
    " ",
    "\n\n\n",
    "word",
    "\ud800 \udfff",
    "\0 \0\0",
    "🦜" * 300,
    "深度学习。" * 2000,
    "ภาษาไทย" * 500,
    "a " * 99,
]


def with_one_threshold(kind: type[Rule], name: str, threshold: float) -> Rule:
    off = {leaf.name: None for leaf in dataclasses.fields(kind) if leaf.name.startswith(("min_", "max_"))}
    return kind(**off | {name: threshold})


@pytest.mark.parametrize(("kind", "name", "threshold", "text", "value"), CASES)
def test_a_text_beyond_a_threshold_is_dropped_with_its_measure(
    kind: type[Rule], name: str, threshold: float, text: str, value: float
) -> None:
    [judged] = with_one_threshold(kind, name, threshold).judge([text])
    assert judged == Judged(text, Failure(f"{kind.prefix}.{name}", pytest.approx(value), threshold))
    [at_threshold] = with_one_threshold(kind, name, value).judge([text])
    assert bool(at_threshold.failure) == kind.drops_at_threshold


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_duplicate_5grams", 10 / 23), ("max_top_2gram", 11 * 3 / 23)],
    ids=["all count once", "the most frequent counts each time"],
)
def test_runs_that_overlap(name: str, value: float) -> None:
    text = " ".join("a" * 12)
    assert with_one_threshold(Gopher, name, 0.1).judge([text])[0].failure == Failure(f"gopher.{name}", value, 0.1)


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=12).map(" ".join), max_size=4), st.sampled_from(list(GOPHER)))
def test_a_document_is_judged_by_itself_if_others_have_its_words(texts: list[str], name: str) -> None:
    rule = with_one_threshold(Gopher, name, 0)
    assert rule.judge(texts) == [judged for text in texts for judged in rule.judge([text])]


@pytest.mark.parametrize(
    "line",
    [
        "This line has no end",
        "This line ends in an ellipsis...",
        "This has four words.",
        "This has [1] four words.",
        f"One word is {'x' * 1001} long.",
        "Please switch on JavaScript to read this.",
        "Please switch on java[edit]script to read this.",
        "We use cookies to serve you better.",
        "Read our Terms of Use and Privacy Policy!",
        "lorem ipsum {",
        "",
    ],
)
def test_c4_removes_lines(line: str) -> None:
    assert C4().judge([f"{line}\n{GOOD}\r\n  {line}"]) == [Judged(GOOD, None)]


@pytest.mark.parametrize(
    ("line", "setting"),
    [("Here is some Lorem IPSUM, as always.", "drop_lorem_ipsum"), ('if (a == b) { say "so"', "drop_curly_brackets")],
)
def test_c4_drops_pages(line: str, setting: str) -> None:
    text = f"{GOOD}\n{line}"
    assert C4().judge([text]) == [Judged(text, Failure(f"c4.{setting}", 1, 0))]
    assert C4(**{setting: False}).judge([text]) == [Judged(text, None)]


def test_c4_removes_citations_from_lines_that_stay() -> None:
    text = GOOD.replace("first", "first[12]").replace("end!", "[edit]end[citation needed]!")
    assert C4().judge([text]) == [Judged(GOOD, None)]
    assert C4(remove_citations=False).judge([text]) == [Judged(text, None)]
    assert C4().judge([f"[1] {GOOD.replace('And', '[2] And')}"]) == [Judged(GOOD.replace("And", " And"), None)]


def test_chinese_text_is_dropped_by_the_rules_for_english_and_kept_by_those_for_lines() -> None:
    text = "深度学习是机器学习的一个分支，它以人工神经网络为架构，对资料进行表征学习。\n" * 2 + GOOD.replace("e", "学")
    assert Gopher().judge([text])[0].failure
    assert C4().judge([text])[0].text == GOOD.replace("e", "学")
    settings = {"end_marks": "。", "min_words_per_line": None, "min_sentences": 2}
    assert C4(**settings).judge([text])[0].text == text.split("\nTh")[0]
    assert FineWeb(max_duplicate_line_chars=None).judge([text])[0].failure is None


def test_thai_text_which_has_no_marks_is_dropped_by_fineweb_unless_told() -> None:
    text = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน\nการเขียนภาษาไทยไม่เว้นวรรคระหว่างคำ"
    assert FineWeb().judge([text])[0].failure == Failure("fineweb.min_punctuated_lines", 0, 0.12)
    assert FineWeb(min_punctuated_lines=None).judge([text])[0].failure is None


@pytest.mark.parametrize("kind", RULES.values())
def test_a_document_is_judged_by_itself(kind: type[Rule]) -> None:
    texts = ODD + [text * 2 for text in topics.values()] + [text[:300] for text in topics.values()]
    assert kind().judge(texts) == [judged for text in texts for judged in kind().judge([text])]
    assert kind().judge([]) == []


@pytest.mark.parametrize("kind", RULES.values())
def test_a_threshold_out_of_its_range_and_an_empty_text_are_refused(kind: type[Rule]) -> None:
    for leaf in dataclasses.fields(kind):
        if leaf.metadata.get("numbers"):
            with pytest.raises(UserError, match=f"^--{kind.prefix}.{leaf.name} -1: expected a"):
                kind(**{leaf.name: -1})
        elif isinstance(leaf.default, str):
            with pytest.raises(UserError, match=f"^--{kind.prefix}.{leaf.name} needs a value; it is empty$"):
                kind(**{leaf.name: ""})


def test_settings_are_read_as_they_are_typed() -> None:
    typed_in = {"min_words": "1e2", "max_top_2gram": "null", "max_words": "null", "stop_words": "der die"}
    assert Gopher(**typed(Gopher, "gopher", typed_in)) == Gopher(100, None, max_top_2gram=None, stop_words="der die")
    assert C4(**typed(C4, "c4", {"end_marks": "。", "drop_lorem_ipsum": "false"})) == C4(
        end_marks="。", drop_lorem_ipsum=False
    )
