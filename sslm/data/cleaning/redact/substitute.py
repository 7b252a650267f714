"""Replace what a pattern finds and a check confirms; what was found is not kept."""

import re
from collections.abc import Callable

Confirmed = Callable[[re.Match[str]], str | None]
"""What stands in a match's place, or None if it is not what it looks like."""


def substitute(pattern: re.Pattern[str], confirmed: Confirmed, text: str) -> tuple[str, int]:
    """Replace the confirmed matches, and count them."""
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        new = confirmed(match)
        count += new is not None
        return match[0] if new is None else new

    return pattern.sub(replacement, text), count


def before(match: re.Match[str], length: int = 1) -> str:
    """Read the characters before a match.

    Patterns here begin with one character or class, which `re` searches for five times faster than for a lookbehind or
    a repetition; what may not stand before a match is checked afterwards.
    """
    return match.string[max(match.start() - length, 0) : match.start()]
