"""Editors that write a text in one way, and leave what it says."""

import re
import time
import unicodedata

import pytest
from ftfy.badness import is_bad
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning import normalise
from sslm.data.cleaning.normalise import EDITORS, USUAL, controls, line_ends, mojibake, nfc, nfkc, white_space

ODD = "aZ .,\n\r\t\0\x0b\x1b[m0;\x85\xa0\xadéÃ©â€œ“”\u0300\u0327\u200b\u200c\u200d\u200e\u202e\u2028\u2060\ufeff\ufffd"
ODD += "\u061cｆ２ﬁ½ﷺक्षมی漢字🏴👩🚀\U000e0067\U000e007f\U000e0100\ud83d\ufffe\u1100\u1161"
texts = st.text(st.sampled_from(ODD) | st.characters(), max_size=60)
LARGE = 1_000_000


@pytest.mark.parametrize("name", EDITORS)
@given(text=texts)
def test_an_editor_has_nothing_to_do_the_second_time(name: str, text: str) -> None:
    once = EDITORS[name](text)
    assert EDITORS[name](once) == once


@given(texts)
def test_an_editor_leaves_nothing_for_those_before_it(text: str) -> None:
    for name in USUAL[1:]:  # a mark removed may bring two letters together that look like mojibake
        text = EDITORS[name](text)
    for name in USUAL[1:]:
        assert EDITORS[name](text) == text


@pytest.mark.parametrize("name", EDITORS)
def test_no_text_takes_longer_than_its_length_explains(name: str) -> None:
    units = [" ", "\n", "a", "é", "Ã", "Ã© ", "\0", "\u200d", "\ud83d", "\x1b[", "🏴", "a\u0300\u0327", "\ufdfa", " \n"]
    units += ["\u0300\u0327", "\x1b[0", " \t", "\u0e01\u200b", "\U000e0100", "\r", "\u1100\u1161\u11a8"]
    for unit in units:
        before = time.process_time()
        EDITORS[name](unit * (LARGE // 10 // len(unit)))
        assert time.process_time() - before < 1, unit
    EDITORS[name]("x" * 10 * LARGE)
    EDITORS[name]("x" + " " * LARGE + "y")


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("donâ€™t", "don’t"),
        ("SchrÃ¶dinger and voilÃ  le travail", "Schrödinger and voilà le travail"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("schÃƒÂ¶n", "schön"),
        ("â€œquotedâ€\x9d", "“quoted”"),
        ("漢字 SchrÃ¶dinger\nnext: cafÃ©\n", "漢字 Schrödinger\nnext: café\n"),
    ],
)
def test_mojibake_is_decoded_anew(broken: str, mended: str) -> None:
    assert mojibake(broken) == mended


def test_what_is_no_mojibake_stays_as_it_is() -> None:
    sound = (
        "“It’s” – ‘so’ … &amp; ﬁne\r\nＦｕｌｌ Ärger café œuvre Ünïcödé «guillemets» \x1b[1m Привет 漢字 مرحبا हिन्दी"
    )
    assert mojibake(sound) == sound


@given(st.text("aé ÃÂâ€œŒ©\x9d\xa0\xadРВ°В漢Σβ", max_size=40))
def test_nothing_is_mojibake_that_is_not_looked_at(text: str) -> None:
    assert normalise.MAYBE_MOJIBAKE.search(text) or not is_bad(text)


def test_line_ends_are_those_at_which_python_splits() -> None:
    """But for three old separators, which are no line ends, and go as control characters."""
    ends = [char for char in map(chr, range(0x10000)) if len(f"a{char}b".splitlines()) == 2]
    assert [char for char in ends if line_ends(char) != "\n"] == ["\x1c", "\x1d", "\x1e"]
    assert line_ends("a\r\nb\r\rc\n\rd") == "a\nb\n\nc\n\nd"


def test_characters_that_change_what_is_read_stay() -> None:
    for text in (
        "می‌خواهم",  # Persian: U+200C between the verb's parts
        "क्‍ष क्‌ष",  # Hindi: half forms and none
        "👩‍🚀 🏳️‍🌈 👨‍👩‍👧 ❤️‍🔥 👋🏽",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland
        "ภาษา\u200bไทย",
        "葛\U000e0100城",
        "tab\tand\nline\r\n \ufffd \u034f ᠠ᠎ᠡ",
    ):
        assert controls(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\0b\x07c\x7fd\x9fe", "abcde"),
        ("\ufeffBOM \ufeffinside", "BOM inside"),
        ("co\u00adop\u200ber\u200ca\u200dte\u2060d", "cooperated"),
        ("\u202eevil\u202c \u2066x\u2069 \u200eL\u200f", "evil x L"),
        ("می\u200c\u200cخ", "می\u200cخ"),
        ("\x1b[31;1mred\x1b[0m \x1b]", "red ]"),
        ("hidden\U000e0068\U000e0069", "hidden"),
        ("a\U000e0100b", "ab"),
        ("👩\u200d \u200d👩", "👩 👩"),
        ("a\ufffeb\uffffc\ufdd0d\ufffc", "abcd"),
    ],
)
def test_characters_that_nobody_sees_go(text: str, seen: str) -> None:
    assert controls(text) == seen


@given(texts)
def test_forms_are_unicodedatas(text: str) -> None:
    assert nfc(text) == unicodedata.normalize("NFC", text)
    assert nfkc(text) == unicodedata.normalize("NFKC", text)


def test_marks_without_end_are_cut() -> None:
    assert nfc("a" + "\u0327\u0301" * 20 + "b") == unicodedata.normalize("NFC", "a" + "\u0327\u0301" * 15 + "b")
    assert nfkc("１２ ﬁ … Ⅳ") == "12 fi ... IV"


@given(st.text("a \t\n\xa0\u3000", max_size=40))
def test_white_space_is_what_it_says(text: str) -> None:
    plain = white_space(text)
    assert not re.search(r"[ \t](\n|\Z)|\n{4}|[^ \t\n][ \t]{2}|\A\n|\n\Z|\xa0|\u3000", plain)
    assert plain.split() == text.split()


def test_indentation_stays() -> None:
    code = "def f(a):\n    if a:\n\t\treturn 1\n\n\n    return 2"
    assert white_space(code) == code
    assert white_space("1\t2 \t 3  4\u00a05") == "1\t2\t3 4 5"


def test_quotes_stay_curly_unless_asked() -> None:
    text = "“Don’t”, he said"
    assert normalise.straight_quotes(text) == '"Don\'t", he said'
    for name in USUAL:
        if name != "mojibake":
            assert EDITORS[name](text) == text


def test_without_ftfy_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    normalise._ftfy.cache_clear()
    monkeypatch.setattr(normalise, "find_spec", lambda name: None)
    with pytest.raises(normalise.UserError, match=r"pip install 'sslm\[clean\]'"):
        mojibake("ASCII")
