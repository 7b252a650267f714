"""Leave code as it is: what stands between fences or backticks, as in Markdown."""

import re
from collections.abc import Callable

FENCES = r"(?m:^ {0,3}(`{3,}|~{3,}).*(?:\n(?! {0,3}\1).*)*+(?:\n.*)?)"
FENCED = re.compile(FENCES)
QUOTED = re.compile(rf"{FENCES}|`[^`\n]+`")


def outside(code: re.Pattern[str], edit: Callable[[str], str], text: str) -> str:
    """Edit what stands between the matches of a pattern."""
    if "`" not in text and "~~~" not in text:
        return edit(text)
    pieces, done = [], 0
    for match in code.finditer(text):
        pieces += [edit(text[done : match.start()]), match[0]]
        done = match.end()
    return "".join([*pieces, edit(text[done:])])
