"""A sample of documents, and what is counted of each: chosen by their hash, so that it is the same in every process."""

import hashlib
import heapq
from collections.abc import Iterable
from typing import NamedTuple

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.languages import letters_by_script
from sslm.data.cleaning.tally import Tally

SIZE = 2_000
"""Documents of a sample."""
CHARS = 8_000
"""Characters of each that are kept."""


class Sampled(NamedTuple):
    """A document of the sample."""

    hash: str
    text: str
    language: str
    source: str
    """The file that it is from."""


class Sample:
    """The documents of the lowest hashes."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Sampled]] = []

    def join(self, sampled: Iterable[Sampled]) -> None:
        """Take another sample's documents."""
        for one in sampled:
            self._put(one)

    def add(self, document: Document) -> None:
        hash = hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()
        if len(self._heap) < SIZE or -int(hash, 16) > self._heap[0][0]:
            self._put(Sampled(hash, document.text[:CHARS], document.language or "", document.origin["file"]))

    def _put(self, one: Sampled) -> None:
        place = (-int(one.hash, 16), one)
        if len(self._heap) < SIZE:
            heapq.heappush(self._heap, place)
        else:
            heapq.heappushpop(self._heap, place)

    def chosen(self) -> list[Sampled]:
        """Return the sample, by hash."""
        return sorted(one for _, one in self._heap)


def describe(document: Document, tally: Tally) -> None:
    """Count a kept document's length, language, scripts and origin."""
    num_words = len(document.text.split())
    tally.count("lengths", f"{max(num_words, 1).bit_length() - 1:02d}")
    tally.count("sources", document.origin["file"])
    if document.language is not None:
        tally.count("languages", document.language)
    for script, letters in letters_by_script(document.text).items():
        tally.count("scripts", script, letters)
