"""Texts without their languages' most frequent words. This is for bags of words: it harms language modelling.

A model learns grammar from these words, and texts that it generates without them are no sentences. Nothing in `sslm
clean` takes them out unless asked.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec

from sslm.system.errors import UserError

UNSPACED = ("ja", "th", "zh")
"""Languages of the list that write no spaces between words."""


def stop_words(languages: Iterable[str]) -> frozenset[str]:
    """Read the stop words of languages (stopwords-iso, 58 of them), by ISO 639-1's codes.

    Raises:
        UserError: stopwordsiso is not installed, has no list for a language, or a language writes no spaces between
            its words, so that there is nothing to compare with a list.
    """
    words: set[str] = set()
    lists = _lists()
    for language in languages:
        if language not in lists or language in UNSPACED:
            known = ", ".join(sorted(set(lists) - set(UNSPACED)))
            why = "its words are not separated by spaces" if language in UNSPACED else "no list of them"
            raise UserError(f"stop words of {language}: {why}; there are {known}")
        words |= {word.casefold() for word in lists[language]}
    return frozenset(words)


@cache
def _lists() -> dict[str, frozenset[str]]:
    if find_spec("stopwordsiso") is None:
        raise UserError("stop words: stopwordsiso is not installed; pip install 'sslm[clean]'")
    import stopwordsiso

    return {language: frozenset(stopwordsiso.stopwords(language)) for language in stopwordsiso.langs()}


@cache
def word_pattern() -> re.Pattern[str]:
    """Match a word and the blanks after it: letters with their combining marks, such as vowels of Hindi, which `re`
    takes for no letters."""
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    letters = rf"[^\W\d_]++(?:[{marks}]++[^\W\d_]*+)*+"
    return re.compile(rf"(?<!\w)(?=[^\W\d_])(?<![{marks}])({letters}(?:['’]{letters})*+)(?!\w)[ \t]*")


def without(words: frozenset[str]) -> Callable[[str], str]:
    """Make an editor that removes these words, in upper and lower case.

    >>> without(frozenset({"the", "over"}))("The fox\\n  jumps over the dog over\\n")
    'fox\\n  jumps dog\\n'
    """

    word_in = word_pattern()

    def edit(text: str) -> str:
        text = word_in.sub(lambda word: "" if word[1].casefold() in words else word[0], text)
        return "\n".join(line.rstrip(" \t") for line in text.split("\n"))

    return edit
