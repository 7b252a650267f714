"""Bytes to text, by one rule for all formats: what is not UTF-8 becomes U+FFFD, is counted, and refused above 1 %."""

import codecs
from collections.abc import Iterator
from typing import Any

from sslm.system.errors import UserError
from sslm.system.terminal import plural

READ_BYTES = 1 << 20
INVALID_SHARE = 0.01
"""A file of which a larger share is not UTF-8 is not text."""
REPLACEMENT = "\ufffd"


class Utf8:
    """Turns the bytes of one file into text. Bytes that are not UTF-8 become U+FFFD, and are counted.

    Args:
        where: the file's name, for the user.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.invalid = self.total = 0
        self.advice = "convert it, for example: iconv -f latin1 -t utf-8 FILE > utf8.txt"

    def text(self, data: bytes) -> str:
        """Decode a whole text.

        Raises:
            UserError: more than 1 % of what was read so far is not UTF-8, and that is a mebibyte or more.
        """
        self.total += len(data)
        try:
            return data.decode()
        except UnicodeDecodeError:
            text = data.decode(errors="replace")
            self._replaced(text.count(REPLACEMENT) - data.count(REPLACEMENT.encode()))
            return text

    def chunks(self, stream: Any) -> Iterator[str]:
        """Decode a stream chunk by chunk, without a byte order mark. UserError as `text`, and for NUL bytes."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = b""
        while chunk := stream.read(READ_BYTES):
            if b"\0" in chunk:
                raise UserError(f"{self.where}: not text (NUL bytes at {self.total + chunk.index(0)}); give UTF-8 text")
            text = decoder.decode(chunk)
            yield text if self.total else text.removeprefix("\ufeff")
            self.total += len(chunk)
            self._replaced(text.count(REPLACEMENT) - (before + chunk).count(REPLACEMENT.encode()))
            before = chunk[-2:]
        rest = decoder.decode(b"", final=True)
        self._replaced(len(rest))
        yield rest

    def sound(self, text: str) -> str:
        """Replace halves of surrogate pairs, which JSON can spell, by U+FFFD."""
        try:
            text.encode()
            return text
        except UnicodeEncodeError:
            self.advice = r"it escapes halves of characters (\ud83d): write the file anew, with whole ones"
            sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            self._replaced(sound.count(REPLACEMENT) - text.count(REPLACEMENT))
            return sound

    def _replaced(self, number: int) -> None:
        self.invalid += number
        if number:
            self.check(READ_BYTES)

    def check(self, least_bytes: int = 0) -> None:
        """Raise UserError if more than 1 % is not UTF-8, of `least_bytes` at least."""
        if self.invalid > INVALID_SHARE * max(self.total, least_bytes):
            raise UserError(
                f"{self.where}: not UTF-8 text ({plural(self.invalid, 'place')} in the first {self.total:,} bytes); "
                f"{self.advice}"
            )

    def remark(self) -> str | None:
        """Tell what was replaced, or None if nothing was."""
        places = plural(self.invalid, "place")
        return f"{self.where}: {places} not UTF-8, read as U+FFFD" if self.invalid else None
