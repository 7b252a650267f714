"""Edits of a word's text, each a pure function of the text and a random number.

Typing errors are those of Belinkov and Bisk 2018 (arXiv:1711.02173, "Key" and "Swap") and Pruthi et al. 2019
(arXiv:1905.11268: a letter dropped, added, swapped, or another key). What optical character recognition confuses is
what looks alike in print.
"""

import re
from collections.abc import Callable

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Letters of a keyboard, each row half a key to the right of the one above."""
LOOKALIKES = (
    ("rn", "m"),
    ("cl", "d"),
    ("vv", "w"),
    ("ii", "u"),
    ("ri", "n"),
    ("l", "1"),
    ("I", "l"),
    ("O", "0"),
    ("S", "5"),
    ("B", "8"),
    ("Z", "2"),
    ("e", "c"),
    ("h", "b"),
    ("f", "t"),
    ("g", "q"),
    ("i", "j"),
    ("a", "o"),
)
"""What looks alike; each is read for the other."""
MARKS = re.compile(r'[.,;:!?…¡¿"“”„«»()\[\]{}。，、；：！？「」（）]')
"""Marks that are not spoken; apostrophes and hyphens stand inside words."""
PLAIN = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "--"})

Edit = Callable[[str, int], str]
"""(A word with the white space before it, a number of 64 random bits) -> the word as it is now written."""


def _neighbours() -> dict[str, str]:
    """Letter -> the letters whose keys touch its own."""
    places = {letter: (x + y / 2, y) for y, row in enumerate(ROWS) for x, letter in enumerate(row)}
    near = {}
    for letter, (x, y) in places.items():
        near[letter] = "".join(other for other, (u, v) in places.items() if 0 < abs(u - x) + abs(v - y) / 2 <= 1)
    return near | {letter.upper(): touching.upper() for letter, touching in near.items()}


NEIGHBOURS = _neighbours()
CONFUSIONS = (*LOOKALIKES, *((b, a) for a, b in LOOKALIKES))


def mistyped(word: str, draw: int) -> str:
    """Make one typing error in a word of two letters or more.

    >>> [mistyped(" hello", draw) for draw in range(4)]
    [' yello', ' ehllo', ' ello', ' hhello']
    """
    letters = [place for place, character in enumerate(word) if character.isalpha()]
    if len(letters) < 2:
        return word
    draw, kind = divmod(draw, 4)
    draw, which = divmod(draw, len(letters))
    at = letters[which]
    before, letter, after = word[:at], word[at], word[at + 1 :]
    if kind == 0 and letter in NEIGHBOURS:
        return f"{before}{NEIGHBOURS[letter][draw % len(NEIGHBOURS[letter])]}{after}"
    if kind == 2:
        return before + after
    if kind == 3:
        return f"{before}{letter}{letter}{after}"
    if not after[:1].isalpha():  # the last letter changes places with the one before it
        before, letter, after = before[:-1], before[-1:], letter + after
    return f"{before}{after[0]}{letter}{after[1:]}" if letter.isalpha() else word


def misread(word: str, draw: int) -> str:
    """Read some letters of a word as others that look like them.

    >>> [misread(" modern", draw) for draw in range(3)]
    [' modem', ' modcrn', ' rnodern']
    """
    possible = [(a, b) for a, b in CONFUSIONS if a in word]
    found = [(at, a, b) for a, b in possible for at in range(len(word)) if word.startswith(a, at)]
    if not found:
        return word
    at, was, now = found[draw % len(found)]
    return word[:at] + now + word[at + len(was) :]


def retyped(word: str, draw: int) -> str:
    """Write quotes, apostrophes and dashes as in print, or plain, as one bit says.

    >>> retyped(' "it\\'s', 1), retyped(" “it’s", 0)
    (' “it’s', ' "it\\'s')
    """
    if not draw % 2:
        return word.translate(PLAIN)
    word = re.sub(r'(?<=\s)"', "“", word).replace('"', "”")
    return re.sub(r"(?<=\s)'", "‘", word).replace("'", "’").replace("--", "—")


EDITS: dict[str, Edit] = {
    "lowercase": lambda word, draw: word.lower(),
    "uppercase": lambda word, draw: word.upper(),
    "no_punctuation": lambda word, draw: MARKS.sub("", word),
    "typography": retyped,
    "typos": mistyped,
    "ocr": misread,
}
"""Name of a noise -> what it makes of a word."""
