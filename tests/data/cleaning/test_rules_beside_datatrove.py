"""Quality rules say of each text what datatrove's filters say, if both split words alike."""

import math
from collections import Counter
from collections.abc import Sequence
from pydoc_data.topics import topics
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning.rules.c4 import C4, num_sentences
from sslm.data.cleaning.rules.fineweb import FineWeb
from sslm.data.cleaning.rules.gopher import Gopher
from sslm.data.cleaning.rules.judged import Rule

datatrove = pytest.importorskip("datatrove", reason="datatrove is not installed: pip install 'sslm[dev]'")
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import (  # noqa: E402
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: E402

GOPHER = {
    "gopher_short_doc": "min_words",
    "gopher_long_doc": "max_words",
    "gopher_below_avg_threshold": "min_mean_word_length",
    "gopher_above_avg_threshold": "max_mean_word_length",
    "gopher_too_many_hashes": "max_symbols_per_word",
    "gopher_too_many_ellipsis": "max_symbols_per_word",
    "gopher_too_many_bullets": "max_bullet_lines",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines",
    "gopher_below_alpha_threshold": "min_alphabetic_words",
    "gopher_enough_stop_words": "min_stop_words",
}
REPETITION = {
    "dup_para_frac": "max_duplicate_paragraphs",
    "dup_para_char_frac": "max_duplicate_paragraph_chars",
    "dup_line_frac": "max_duplicate_lines",
    "dup_line_char_frac": "max_duplicate_line_chars",
    **{f"top_{n}_gram": f"max_top_{n}gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_{n}grams" for n in range(5, 11)},
}


C4_NAMES = {
    "lorem_ipsum": "drop_lorem_ipsum",
    "curly_bracket": "drop_curly_brackets",
    "too_few_sentences": "min_sentences",
}
FINEWEB = {
    "empty": "min_punctuated_lines",
    "line_punct_ratio": "min_punctuated_lines",
    "short_line_ratio": "max_short_lines",
    "char_dup_ratio": "max_duplicate_line_chars",
}


class WhiteSpace(WordTokenizer):  # type: ignore[misc]
    """Splits as we do; datatrove takes it for a language."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))] * num_sentences(text)


ENGLISH = WhiteSpace()


def texts_of_all_kinds() -> list[str]:
    """Prose and tables, whole and cut, with words, lines and paragraphs drawn again, and beginnings repeated."""
    random, texts = Random(0), []
    for text in list(topics.values())[::2]:
        lines, words, paragraphs = text.split("\n"), text.split(" "), text.split("\n\n")
        texts += [text, text[:1300], "\n".join(random.choices(lines, k=len(lines)))]
        texts += [" ".join(random.choices(words, k=200)), "\n\n".join(random.choices(paragraphs, k=len(paragraphs)))]
        texts += [
            text.replace("\n", " ").replace(". ", ".\n"),
            text.replace("\n\n", ".\n") + "\nWe use cookies, as all do.",
        ]
        texts += [text[:2000] + " ".join(words[: random.randrange(5, 40)] * random.randrange(1, 9))]
    return texts


def texts_of(pieces: list[str], between: str = "") -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=60).map(between.join)


def verdicts(rule: Rule, texts: Sequence[str]) -> list[str | None]:
    return [judged.failure and judged.failure.rule.removeprefix(f"{rule.prefix}.") for judged in rule.judge(texts)]


def datatroves(filters: Sequence[Any], names: dict[str, str], text: str) -> str | None:
    """The setting of ours by which one of these filters drops a text."""
    return judged_by_datatrove(filters, names, text)[1]


def judged_by_datatrove(filters: Sequence[Any], names: dict[str, str], text: str) -> tuple[str, str | None]:
    """The text as the filters leave it, and the setting of ours by which one of them drops it."""
    document = Document(text=text, id="")
    for each in filters:
        answer = each.filter(document)
        if answer is not True:
            return text, names[answer[1]]
    return document.text, None


def test_gophers_thresholds_are_datatroves() -> None:
    ours, quality, repetition = Gopher(), GopherQualityFilter(), GopherRepetitionFilter()
    assert [(n, getattr(ours, f"max_top_{n}gram")) for n in range(2, 5)] == list(repetition.top_n_grams)
    assert [(n, getattr(ours, f"max_duplicate_{n}grams")) for n in range(5, 11)] == list(repetition.dup_n_grams)
    for kind, short in (("line", "line"), ("paragraph", "para")):
        assert getattr(ours, f"max_duplicate_{kind}s") == getattr(repetition, f"dup_{short}_frac")
        assert getattr(ours, f"max_duplicate_{kind}_chars") == getattr(repetition, f"dup_{short}_char_frac")
    assert (ours.min_words, ours.max_words) == (quality.min_doc_words, quality.max_doc_words)
    assert ours.min_mean_word_length == quality.min_avg_word_length
    assert ours.max_mean_word_length == quality.max_avg_word_length
    assert ours.max_symbols_per_word == quality.max_symbol_word_ratio
    assert ours.max_bullet_lines == quality.max_bullet_lines_ratio
    assert ours.max_ellipsis_lines == quality.max_ellipsis_lines_ratio
    assert ours.min_alphabetic_words == quality.max_non_alpha_words_ratio
    assert (ours.min_stop_words, set(ours.stop_words.split())) == (quality.min_stop_words, quality.stop_words)


def test_gopher_drops_what_datatrove_drops_for_the_same_reason() -> None:
    texts = texts_of_all_kinds()
    filters = [GopherQualityFilter(language=ENGLISH), GopherRepetitionFilter(language=ENGLISH)]
    ours = verdicts(Gopher(), texts)
    assert ours == [datatroves(filters, GOPHER | REPETITION, text) for text in texts]
    assert len(Counter(ours)) > 10


WORDS = ["a", "b", "cd", "efg", "•", "-", "#", "…", "the", "of", "1", "\n", "\n\n"]
"""None begins another: datatrove tells runs of words by their letters, without the spaces."""


@given(texts_of(WORDS, " ").filter(str.strip))
def test_gopher_measures_any_text_as_datatrove_does(text: str) -> None:
    off = dict.fromkeys(GOPHER.values())
    assert verdicts(Gopher(**off), [text]) == [datatroves([GopherRepetitionFilter(language=ENGLISH)], REPETITION, text)]
    quality = GopherQualityFilter(min_doc_words=1, min_avg_word_length=None, language=ENGLISH)
    off = dict.fromkeys(REPETITION.values())
    ours = verdicts(Gopher(min_words=1, min_mean_word_length=None, **off), [text])
    assert ours == [datatroves([quality], GOPHER, text)]


def c4_pair(remove_citations: bool, min_words: int | None) -> tuple[C4, C4QualityFilter]:
    """Ours and datatrove's, which counts words before it removes citations: it is asked for one of the two."""
    ours = C4(end_marks=".?!\"'", remove_citations=remove_citations, min_words_per_line=min_words)
    theirs = C4QualityFilter(
        min_num_sentences=3,
        min_words_per_line=-1 if min_words is None else min_words,
        remove_citations=remove_citations,
        language=ENGLISH,
    )
    return ours, theirs


C4_PAIRS = [c4_pair(False, 5), c4_pair(True, None)]


@pytest.mark.parametrize(("ours", "theirs"), C4_PAIRS)
def test_c4_edits_and_drops_as_datatrove_does(ours: C4, theirs: C4QualityFilter) -> None:
    texts = texts_of_all_kinds()
    judged = [judged.text for judged in ours.judge(texts)]
    expected = [judged_by_datatrove([theirs], C4_NAMES, text) for text in texts]
    assert list(zip(judged, verdicts(ours, texts), strict=True)) == expected
    assert len({reason for _, reason in expected}) > 2
    assert sum(text != edited and reason is None for text, (edited, reason) in zip(texts, expected, strict=True)) > 20


C4_PIECES = [
    "a b",
    "c d e.",
    "f!",
    "[1]",
    "[edit]",
    "lorem",
    " ipsum.",
    "{",
    "java",
    "script?",
    "use",
    "cookies",
    "...",
]
C4_PIECES += ["'", "x" * 1001, "\n", "\r\n", "\u2028", "\x1c", " ", " "]


@given(texts_of(C4_PIECES))
def test_c4_edits_and_drops_any_text_as_datatrove_does(text: str) -> None:
    for ours, theirs in C4_PAIRS:
        [judged] = ours.judge([text])
        assert (judged.text, *verdicts(ours, [text])) == judged_by_datatrove([theirs], C4_NAMES, text)


BESIDE_FINEWEB = FineWebQualityFilter(
    line_punct_thr=math.nextafter(0.12, 1),  # datatrove keeps what is at a threshold
    short_line_thr=math.nextafter(0.67, 0),
    char_duplicates_ratio=math.nextafter(0.01, 0),
    short_line_length=29,
    new_line_ratio=math.inf,
    language=ENGLISH,
)


def test_fineweb_drops_what_datatrove_drops_for_the_same_reason() -> None:
    texts = texts_of_all_kinds()
    ours = verdicts(FineWeb(), texts)
    assert ours == [datatroves([BESIDE_FINEWEB], FINEWEB, text) for text in texts]
    assert len(Counter(ours)) == 4


@given(texts_of(["a", "b.", "c。", 'd"', " ", "e" * 29, "f" * 30 + "?", "\r", "\n", "\n"]))
def test_fineweb_measures_any_text_as_datatrove_does(text: str) -> None:
    assert verdicts(FineWeb(), [text]) == [datatroves([BESIDE_FINEWEB], FINEWEB, text)]
