"""Gopher's rules for MassiveWeb (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1): quality, then repetition."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslm.config.setting import NOT_NEGATIVE, SHARE, setting
from sslm.data.cleaning.rules.characters import PUNCTUATION
from sslm.data.cleaning.rules.judged import Failure, Judged, Measures, Rule
from sslm.data.cleaning.rules.lines import copied, shares
from sslm.data.cleaning.rules.ngrams import duplicated, most_frequent, repeated
from sslm.data.cleaning.rules.words import Words

PARAGRAPH_ENDS = re.compile(r"\n{2,}")
LINE_ENDS = re.compile(r"\n+")
PART_CHARS = 1 << 18


@dataclass(frozen=True)
class Gopher(Rule):
    """What is too short, too long, no prose, no English, or repeats itself is dropped.

    A word is what stands between white space. The paper does not say what a word is; as in datatrove, what is nothing
    but punctuation counts neither as a word nor in the mean length, but in all other shares. Written without spaces,
    Chinese, Japanese or Thai texts have few and long words, and none of the stop words: all are dropped. So is nearly
    all other text that is not English, unless stop_words are the language's own.
    """

    prefix = "gopher"

    min_words: int | None = setting(50, NOT_NEGATIVE)
    """Least number of words (A.1.1, quality filtering)."""
    max_words: int | None = setting(100_000, NOT_NEGATIVE)
    """Largest number of words (A.1.1)."""
    min_mean_word_length: float | None = setting(3.0, NOT_NEGATIVE)
    """Least mean length of words, in characters (A.1.1)."""
    max_mean_word_length: float | None = setting(10.0, NOT_NEGATIVE)
    """Largest mean length of words, in characters (A.1.1)."""
    max_symbols_per_word: float | None = setting(0.1, NOT_NEGATIVE)
    """Largest number of # a word, and of ellipses (… or ...) a word (A.1.1)."""
    max_bullet_lines: float | None = setting(0.9, SHARE)
    """Largest share of lines that begin with a bullet: • or - (A.1.1)."""
    max_ellipsis_lines: float | None = setting(0.3, SHARE)
    """Largest share of lines that end in an ellipsis: … or ... (A.1.1)."""
    min_alphabetic_words: float | None = setting(0.8, SHARE)
    """Least share of words with at least one letter (A.1.1)."""
    min_stop_words: int | None = setting(2, NOT_NEGATIVE)
    """Least number of different stop words (A.1.1)."""
    stop_words: str = "the be to of and that have with"
    """Stop words, separated by spaces, compared as they are written (A.1.1)."""
    max_duplicate_paragraphs: float | None = setting(0.3, SHARE)
    """Largest share of paragraphs that stood before in the document; empty lines separate paragraphs (table A1)."""
    max_duplicate_paragraph_chars: float | None = setting(0.2, SHARE)
    """Largest share of characters in paragraphs that stood before in the document (table A1)."""
    max_duplicate_lines: float | None = setting(0.3, SHARE)
    """Largest share of lines that stood before in the document (table A1)."""
    max_duplicate_line_chars: float | None = setting(0.2, SHARE)
    """Largest share of characters in lines that stood before in the document (table A1)."""
    max_top_2gram: float | None = setting(0.2, NOT_NEGATIVE)
    """Largest share of characters in the most frequent run of 2 words, overlaps counted (table A1)."""
    max_top_3gram: float | None = setting(0.18, NOT_NEGATIVE)
    """Largest share of characters in the most frequent run of 3 words, overlaps counted (table A1)."""
    max_top_4gram: float | None = setting(0.16, NOT_NEGATIVE)
    """Largest share of characters in the most frequent run of 4 words, overlaps counted (table A1)."""
    max_duplicate_5grams: float | None = setting(0.15, SHARE)
    """Largest share of characters in runs of 5 words that stood before, none counted twice (table A1)."""
    max_duplicate_6grams: float | None = setting(0.14, SHARE)
    """Largest share of characters in runs of 6 words that stood before, none counted twice (table A1)."""
    max_duplicate_7grams: float | None = setting(0.13, SHARE)
    """Largest share of characters in runs of 7 words that stood before, none counted twice (table A1)."""
    max_duplicate_8grams: float | None = setting(0.12, SHARE)
    """Largest share of characters in runs of 8 words that stood before, none counted twice (table A1)."""
    max_duplicate_9grams: float | None = setting(0.11, SHARE)
    """Largest share of characters in runs of 9 words that stood before, none counted twice (table A1)."""
    max_duplicate_10grams: float | None = setting(0.1, SHARE)
    """Largest share of characters in runs of 10 words that stood before, none counted twice (table A1)."""

    def judge(self, texts: Sequence[str]) -> list[Judged]:
        """Judge a block's documents; those that fail one group of measures are not measured by the next."""
        return [judged for part in parts(texts) for judged in self._judged(part)]

    def _judged(self, texts: Sequence[str]) -> list[Judged]:
        words = Words.of(texts)
        failures: dict[int, Failure] = {}
        for measures in (self._quality, repeated_lines, repeated_runs):
            rest = [number for number in range(len(texts)) if number not in failures]
            found = self.first_failures(measures([texts[number] for number in rest], words.only(rest)), len(rest))
            failures |= {rest[place]: failure for place, failure in found.items()}
        return [Judged(text, failures.get(number)) for number, text in enumerate(texts)]

    def _quality(self, texts: Sequence[str], words: Words) -> Measures:
        with_letter = [word.isalpha() or any(map(str.isalpha, word)) for word in words.vocabulary]
        pairs = zip(with_letter, words.vocabulary, strict=True)
        is_word = np.array([has_letter or bool(word.strip(PUNCTUATION)) for has_letter, word in pairs], bool)
        num_words = words.sums(is_word)
        yield "min_words", num_words
        yield "max_words", num_words
        mean_length = words.sums(words.lengths * is_word) / np.maximum(num_words, 1)
        yield "min_mean_word_length", mean_length
        yield "max_mean_word_length", mean_length
        num_all = np.maximum(np.diff(words.starts), 1)
        symbols = [max(text.count("#"), text.count("...") + text.count("…")) for text in texts]
        yield "max_symbols_per_word", np.array(symbols) / num_all
        lines = [text.splitlines() for text in texts]
        yield "max_bullet_lines", shares(lines, lambda line: line.lstrip().startswith(("•", "-")))
        yield "max_ellipsis_lines", shares(lines, lambda line: line.rstrip().endswith(("...", "…")))
        yield "min_alphabetic_words", words.sums(np.array(with_letter, bool)) / num_all
        yield "min_stop_words", num_different(words, self.stop_words.split())


def parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a block into parts whose words stay in the processor's cache: of PART_CHARS at most, or one document."""
    first = size = 0
    for number, text in enumerate(texts):
        if size and size + len(text) > PART_CHARS:
            yield texts[first:number]
            first, size = number, 0
        size += len(text) + 1
    if size:
        yield texts[first:]


def num_different(words: Words, some: Sequence[str]) -> NDArray[np.int64]:
    """[documents] how many of some words a document has."""
    wanted = set(some)
    is_wanted = words.each(wanted.__contains__)[words.ids]
    size = len(words.vocabulary)
    pairs = np.unique(words.documents[is_wanted] * size + words.ids[is_wanted])
    return np.bincount(pairs // max(size, 1), minlength=len(words.starts) - 1)


def repeated_lines(texts: Sequence[str], words: Words) -> Measures:
    """Measure what stood before in the document: paragraphs, then lines."""
    sizes = np.maximum([len(text) for text in texts], 1)
    for kind in ("paragraph", "line"):
        pieces = [split(text, kind) for text in texts]
        copies = np.array([copied(some) for some in pieces]).reshape(-1, 2)
        yield f"max_duplicate_{kind}s", copies[:, 0] / [len(some) for some in pieces]
        yield f"max_duplicate_{kind}_chars", copies[:, 1] / sizes


def split(text: str, kind: str) -> list[str]:
    """Split into paragraphs, at empty lines, of a text without white space around it; or into lines that are not empty,
    but for one behind the last line's end."""
    if kind == "paragraph":
        return PARAGRAPH_ENDS.split(text.strip()) if "\n\n" in text else [text]
    return LINE_ENDS.split(text) if "\n\n" in text else text.split("\n")


def repeated_runs(texts: Sequence[str], words: Words) -> Measures:
    """Measure the most frequent runs of 2 to 4 words, then all runs of 5 to 10 that stood before."""
    sizes = np.maximum([len(text) for text in texts], 1)
    for found in repeated(words, 10):
        if found.n <= 4:
            yield f"max_top_{found.n}gram", most_frequent(words, found) / sizes
        else:
            yield f"max_duplicate_{found.n}grams", duplicated(words, found) / sizes
