"""Tokens that come one by one, as text: no character is shown before it is whole, and texts to stop at are found."""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
"""Token ids -> their text."""

CONTEXT = 8
"""Tokens before a piece that decide how it is written: whether it begins with a space, or goes on with a character."""
LONGEST_CHARACTER = 8
"""A character is whole after so many tokens at most: what is still none by then never will be one."""
PARTIAL = "\ufffd"
"""What decoders write for bytes that are no character."""


def continued(decode: Decode, before: list[int], new: list[int]) -> str:
    """Return the text of new tokens as it stands behind those before them."""
    before = before[-CONTEXT:]
    known, both = decode(before), decode(before + new)
    return both[len(known) :] if both.startswith(known) else decode(new)


def first_of(stops: Sequence[str], text: str) -> int | None:
    """Find where the first of some texts begins in a text; None if none is in it."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def has_stop(decode: Decode, before: list[int], new: list[int], stops: Sequence[str]) -> bool:
    """Whether the last of new tokens has completed a text to stop at; those before may have none."""
    if not stops:
        return False
    tail = max(len(stop.encode()) for stop in stops) + 1  # a token is a byte of text at least
    start = max(len(new) - tail, 0)
    return first_of(stops, continued(decode, before + new[:start], new[start:])) is not None


class Stream:
    """Pass text on as its tokens come, but for what may still become a character or a text to stop at.

    Args:
        decode: ids to text.
        before: the prompt's tokens.
        stops: texts to stop at, which are not passed on.
        show: takes each piece of text.
    """

    def __init__(self, decode: Decode, before: list[int], stops: Sequence[str], show: Callable[[str], object]) -> None:
        self.decode, self.stops, self.show = decode, stops, show
        self.before, self.pending = before[-CONTEXT:], list[int]()
        self.held = ""
        """Text that a stop may begin with."""
        self.has_stopped = False

    def put(self, token: int) -> None:
        self.pending.append(token)
        text = continued(self.decode, self.before, self.pending)
        if not text.endswith(PARTIAL) or len(self.pending) >= LONGEST_CHARACTER:
            self.before, self.pending = (self.before + self.pending)[-CONTEXT:], []
            self._pass_on(text, keep=True)

    def close(self) -> None:
        """Pass on what was kept back."""
        self._pass_on(continued(self.decode, self.before, self.pending), keep=False)
        self.pending = []

    def _pass_on(self, text: str, keep: bool) -> None:
        if self.has_stopped:
            return
        text = self.held + text
        place = first_of(self.stops, text)
        self.has_stopped = place is not None
        end = len(text) - (beginning_at_end(text, self.stops) if keep else 0) if place is None else place
        text, self.held = text[:end], text[end:]
        if text:
            self.show(text)


def beginning_at_end(text: str, stops: Sequence[str]) -> int:
    """Length of the longest beginning of a stop with which a text ends.

    >>> beginning_at_end("and so </", ["</s>", "###"])
    2
    """
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
