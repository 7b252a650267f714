"""Lines that are no text: menus, cookie notices and other navigation; rows of symbols."""

import re

from sslm.data.cleaning.denoise.code import FENCED, outside
from sslm.data.cleaning.denoise.words import MENU, PHRASES, STEPS

LEAST_ITEMS = 3
BETWEEN_ITEMS = re.compile(r"[|›»•·>\t]|  ")
EDGES = " \t«»‹›<>←→|•·*-–—/\\[]()"
ARROW = re.compile(r"^\s*(?:«|‹|←|<+)|(?:»|›|→|>+)\s*$")
COOKIES = re.compile(
    r"^\W*(?:we (?:and our partners )?use|(?:this|our) (?:web ?)?site uses|by (?:continuing|using|clicking|browsing)"
    r"|wir verwenden|diese (?:web)?seite verwendet|nous utilisons|ce site utilise|este sitio (?:web )?utiliza"
    r"|utilizamos)\b.{0,200}\bcookies?\b",
    re.IGNORECASE,
)
LONGEST_NOTICE = 600
"""Characters of a line that may be a notice; of a menu, a third."""

NO_LETTERS = re.compile(r"[\W_][\W_][\W_]")
"""What each line of symbols has, and few others."""
TABLE_RULE = re.compile(r"\s*[|+][\s|+:=-]*")
LEAST_SYMBOLS = 10
"""Characters, spaces left out, of a line that is judged: `});` and `---` are shorter."""
LETTER_SHARE = 0.15
"""Share of letters and digits below which a line is one of symbols."""


def navigation(text: str) -> str:
    """Drop lines that only lead through a site: known phrases, menus of at least three known items, cookie notices.

    A menu may stand in one line, or an item a line. At least half of its items must be known ones.

    >>> navigation("Home | About us | Contact\\nSkip to content\\nThe menu was good.\\n« Previous\\nHome")
    'The menu was good.\\nHome'
    """
    return outside(FENCED, _without_navigation, text)


def _without_navigation(text: str) -> str:
    lines = text.split("\n")
    kept: list[str | None] = list(lines)
    run: list[int] = []
    items = 0
    for place, line in enumerate([*lines, "."]):  # the last ends a run
        if not line.strip():
            continue
        if _is_notice(line):
            kept[place] = None
        elif found := _menu_items(line):
            run.append(place)
            items += found
        else:
            if items >= LEAST_ITEMS:
                for menu in run:
                    kept[menu] = None
            run, items = [], 0
    return "\n".join(line for line in kept if line is not None)


def _is_notice(line: str) -> bool:
    if len(line) > LONGEST_NOTICE:
        return False
    words = line.strip(EDGES).casefold()
    if words in PHRASES or (words in STEPS and ARROW.search(line)):
        return True
    return "cookie" in words and COOKIES.search(line) is not None


def _menu_items(line: str) -> int:
    """Count the items of a line that is part of a menu; 0 for any other."""
    if len(line) > LONGEST_NOTICE // 3 or line.lstrip().startswith("|"):  # the row of a table
        return 0
    items = [item for part in BETWEEN_ITEMS.split(line) if (item := part.strip(EDGES).casefold())]
    known = sum(item in MENU for item in items)
    is_menu = known * 2 >= len(items) and all(item.count(" ") < 3 for item in items)
    return len(items) if known and is_menu else 0


def symbol_lines(text: str) -> str:
    """Drop lines of ten or more characters of which less than 15 % are letters or digits of any script.

    Rules of tables stay, and so does code between fences.

    >>> symbol_lines("Title\\n~*~*~*~*~*~\\n| a | b |\\n|-----|------|\\nif (a[0]) { b(); }")
    'Title\\n| a | b |\\n|-----|------|\\nif (a[0]) { b(); }'
    """
    if NO_LETTERS.search(text) is None:
        return text
    return outside(FENCED, _without_symbol_lines, text)


def _without_symbol_lines(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not _is_of_symbols(line))


def _is_of_symbols(line: str) -> bool:
    if NO_LETTERS.search(line) is None or TABLE_RULE.fullmatch(line):
        return False
    characters = len(line) - sum(map(str.isspace, line))
    return characters >= LEAST_SYMBOLS and sum(map(str.isalnum, line)) < LETTER_SHARE * characters
