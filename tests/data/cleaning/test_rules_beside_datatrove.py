"""Quality rules say of each text what datatrove's filters say, if both split words alike."""

from collections import Counter
from collections.abc import Sequence
from pydoc_data.topics import topics
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning.rules.gopher import Gopher
from sslm.data.cleaning.rules.judged import Rule

datatrove = pytest.importorskip("datatrove", reason="datatrove is not installed: pip install 'sslm[dev]'")
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter  # noqa: E402
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


class WhiteSpace(WordTokenizer):  # type: ignore[misc]
    """Splits as we do; datatrove takes it for a language."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


ENGLISH = WhiteSpace()


def texts_of_all_kinds() -> list[str]:
    """Prose and tables, whole and cut, with words, lines and paragraphs drawn again, and beginnings repeated."""
    random, texts = Random(0), []
    for text in topics.values():
        lines, words, paragraphs = text.split("\n"), text.split(" "), text.split("\n\n")
        texts += [text, text[:1300], "\n".join(random.choices(lines, k=len(lines)))]
        texts += [" ".join(random.choices(words, k=200)), "\n\n".join(random.choices(paragraphs, k=len(paragraphs)))]
        texts += [text[:2000] + " ".join(words[: random.randrange(5, 40)] * random.randrange(1, 9))]
    return texts


def verdicts(rule: Rule, texts: Sequence[str]) -> list[str | None]:
    return [judged.failure and judged.failure.rule.removeprefix(f"{rule.prefix}.") for judged in rule.judge(texts)]


def datatroves(filters: Sequence[Any], names: dict[str, str], text: str) -> str | None:
    """The setting of ours by which one of these filters drops a text."""
    for each in filters:
        answer = each.filter(Document(text=text, id=""))
        if answer is not True:
            return names[answer[1]]
    return None


def test_gopher_drops_what_datatrove_drops_for_the_same_reason() -> None:
    texts = texts_of_all_kinds()
    filters = [GopherQualityFilter(language=ENGLISH), GopherRepetitionFilter(language=ENGLISH)]
    ours = verdicts(Gopher(), texts)
    assert ours == [datatroves(filters, GOPHER | REPETITION, text) for text in texts]
    assert len(Counter(ours)) > 10


WORDS = ["a", "b", "cd", "efg", "•", "-", "#", "…", "the", "of", "1", "\n", "\n\n"]
"""None begins another: datatrove tells runs of words by their letters, without the spaces."""


@given(st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join).filter(str.strip))
def test_gopher_measures_any_text_as_datatrove_does(text: str) -> None:
    off = dict.fromkeys(GOPHER.values())
    assert verdicts(Gopher(**off), [text]) == [datatroves([GopherRepetitionFilter(language=ENGLISH)], REPETITION, text)]
    quality = GopherQualityFilter(min_doc_words=1, language=ENGLISH)
    measured = verdicts(Gopher(min_words=1, **dict.fromkeys(REPETITION.values())), [text])
    assert measured == [datatroves([quality], GOPHER, text)]
