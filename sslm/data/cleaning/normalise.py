"""One way to write the same text: encoding, line ends, invisible characters, Unicode form, white space.

Each editor is a pure function of one text, takes time in proportion to it, and does nothing the second time. `EDITORS`
has them in the order in which each leaves nothing for an earlier one to do.
"""

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Literal

from sslm.system.errors import UserError

LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

JOINED = (
    "\u0600-\u061b\u061d-\u1cff\ua8e0-\ua8ff\uaa60-\uaa7f\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefe"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
"""Scripts in which a joiner changes what is read: Arabic, Syriac, N'Ko, Mongolian, those of India and their kin.
U+061C is left out: it is invisible itself."""
UNSPACED = "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa60-\uaa7f"
"""Scripts that write no spaces between words, where U+200B may stand for one: Thai, Lao, Tibetan, Burmese, Khmer."""
EMOJI = "\u2190-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff"
IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

INVISIBLE = (
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufdd0-\ufdef\ufeff\ufff9-\ufffc\ufffe\uffff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)
KEPT = (
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"  # flags, as that of Scotland
    f"|(?<=[{JOINED}])[\u200c\u200d]"
    f"|(?<=[{EMOJI}])\u200d(?=[{EMOJI}])"
    f"|(?<=[{UNSPACED}])\u200b(?=[{UNSPACED}])"
    f"|(?<=[{IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
)
COLOUR = "\x1b\\[[0-?]{0,32}[ -/]{0,8}[@-~]"
SOME_INVISIBLE = re.compile(INVISIBLE)
ALL_INVISIBLE = re.compile(f"({KEPT})|{COLOUR}|{INVISIBLE}")

MOST_MARKS = 30
"""Combining marks that may follow one another: Unicode's Stream-Safe Text Format (UAX #15, D4)."""

SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
RUN_OF_SPACES = re.compile("[ \t]{2,}")
BLANK_LINES = re.compile("\n{4,}")

MAYBE_MOJIBAKE = re.compile("[^\x00-\x7f]{2}|[ÂÃŒœ\x80-\x9f]")
"""What each of ftfy's signs of mojibake has; looked for first, ten times as fast."""
QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


def mojibake(text: str) -> str:
    """Decode anew what was decoded by the wrong table, line by line (ftfy, Speer 2019). Quotes stay as they are.

    Raises:
        UserError: ftfy is not installed.
    """
    fix_encoding = _ftfy()  # if it is missing the first text says so
    if text.isascii():
        return text
    lines = text.split("\n")
    return "\n".join(fix_encoding(line) if MAYBE_MOJIBAKE.search(line) else line for line in lines)


@cache
def _ftfy() -> Callable[[str], str]:
    if find_spec("ftfy") is None:
        raise UserError("mojibake: ftfy is not installed; pip install 'sslm[clean]'")
    import ftfy

    decode: Callable[[str], str] = ftfy.fix_encoding
    return decode


def line_ends(text: str) -> str:
    r"""Let \n end each line: not \r, \r\n, form feed, vertical tab, U+0085, U+2028 or U+2029.

    >>> line_ends("one\r\ntwo\rthree\u2028four")
    'one\ntwo\nthree\nfour'
    """
    return LINE_END.sub("\n", text)


def controls(text: str) -> str:
    r"""Remove characters that nobody sees, but for those that change what is read.

    What goes: C0 and C1 controls (all but line ends and tabs), colours of a terminal, soft hyphens, byte order marks,
    word joiners, bidirectional controls (text is stored in the order in which it is read; they only change how it is
    drawn), U+FFFC and its like, noncharacters, tags in which text can be hidden.

    What stays: zero-width (non-)joiners behind a letter of Arabic, Indian and like scripts, joiners between emoji,
    zero-width spaces inside scripts without spaces, tags of flags, variation selectors of ideographs, U+FFFD.

    >>> controls("co\u00adoperate\u200b \x1b[1mnow\x1b[0m\0"), controls("می\u200cخواهم") == "می\u200cخواهم"
    ('cooperate now', True)
    """
    if SOME_INVISIBLE.search(text) is None:  # most texts, and found out 20 times as fast
        return text
    return ALL_INVISIBLE.sub(lambda match: match[1] or "", text)


def nfc(text: str) -> str:
    """Compose each character with its marks; of more than 30 marks in a row the rest go."""
    return _normalised("NFC", text)


def nfkc(text: str) -> str:
    """Compose, and write compatible characters as plain ones: ﬁ as fi, ２ as 2, … as three dots, ½ as 1⁄2."""
    return _normalised("NFKC", text)


def _normalised(form: Literal["NFC", "NFKC"], text: str) -> str:
    if unicodedata.is_normalized(form, text):  # in one pass
        return text
    # unicodedata sorts marks in quadratic time
    return unicodedata.normalize(form, _long_runs_of_marks().sub(r"\1", text))


@cache
def _long_runs_of_marks() -> re.Pattern[str]:
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(char))
    return re.compile(f"([{marks}]{{{MOST_MARKS}}})[{marks}]+")


def white_space(text: str) -> str:
    r"""Write every space as U+0020, one between words (a tab, if there is one), none at a line's end.

    Indentation stays as long as it is. At most two lines in a row are blank, and none at either end of the text.

    >>> white_space("\n\n    if a:  \n\tb\xa0 =  1\n\n\n\n\nc \t d\n")
    '    if a:\n\tb = 1\n\n\nc\td'
    """
    lines = [line.rstrip(" \t") for line in SPACE.sub(" ", text).split("\n")]
    text = RUN_OF_SPACES.sub(_one_space, "\n".join(lines))
    return BLANK_LINES.sub("\n\n\n", text).strip("\n")


def _one_space(run: re.Match[str]) -> str:
    if run.start() == 0 or run.string[run.start() - 1] == "\n":
        return run[0]  # indentation
    return "\t" if "\t" in run[0] else " "


def straight_quotes(text: str) -> str:
    """Write “curly” and ‘single’ quotes as those of a typewriter.

    >>> straight_quotes("“It’s”, „so“")
    '"It\\'s", "so"'
    """
    return text.translate(QUOTES)


EDITORS: dict[str, Callable[[str], str]] = {
    each.__name__: each for each in (mojibake, line_ends, controls, nfc, nfkc, white_space, straight_quotes)
}
"""Name -> editor, in the order in which they work."""
USUAL = ("mojibake", "line_ends", "controls", "nfc", "white_space")
"""Those that change how a text is written, and nothing of what it says."""
