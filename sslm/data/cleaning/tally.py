"""What a clean counts: documents, bytes, words, tokens, by what became of them; tallies of blocks add up."""

import functools
import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.redact import KINDS, redactor
from sslm.data.cleaning.tokens import Count, token_counter

EXAMPLES = 3
"""Examples that are kept of each reason, those of the lowest hash: the same whatever the blocks and their order."""
EXAMPLE_CHARS = 400
MOST_KEYS = 5_000
"""Different keys of a table that are kept, the most frequent: domains would have no end."""

READ, PASSED, KEPT = "read", "passed the rules", "kept"
"""Keys of the tables of documents, bytes and words."""
DROPPED = "dropped: "
"""Before the reason, in these tables."""
NEAR = "near: "
"""Before the reason, of examples that were only just kept."""


@dataclass(order=True)
class Example:
    """A document that was dropped, or was near to it, as its report shows it."""

    hash: str
    text: str
    origin: str
    value: str


@dataclass
class Tally:
    """Tables of counts, by name, and examples, by the table and its key."""

    tables: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    examples: defaultdict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    num_tokens: Count | None = None
    """Counts the tokens of what is kept or dropped; None: they are not counted."""

    @classmethod
    def with_tokens(cls, tokenizer: str | None) -> "Tally":
        """Begin a tally that counts tokens, too, if there is a tokenizer."""
        return cls(num_tokens=None if tokenizer is None else token_counter(tokenizer))

    def count(self, table: str, key: str, number: int = 1) -> None:
        self.tables[table][key] += number

    def add_text(self, what: str, text: str) -> None:
        """Count a document, its bytes and its words."""
        self.count("documents", what)
        self.count("bytes", what, len(text.encode()))
        self.count("words", what, len(text.split()))

    def keep(self, document: Document) -> None:
        """Count a document that becomes part of the corpus."""
        self._end(KEPT, document)

    def _end(self, what: str, document: Document) -> None:
        """Count a document that comes to its end: its tokens are counted here alone, once, since that takes time."""
        self.add_text(what, document.text)
        if self.num_tokens is not None:
            self.count("tokens", what, self.num_tokens(document.text))

    def drop(self, reason: str, document: Document, value: str = "") -> None:
        """Count a document that is dropped, and why; keep it as an example if it is one.

        Args:
            value: what was measured, beside what is allowed.
        """
        self._end(f"{DROPPED}{reason}", document)
        self.show(reason, document, value)

    def show(self, reason: str, document: Document, value: str = "") -> None:
        """Keep an example, with placeholders for what is personal or secret in it."""
        hash = hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest()
        origin = f"{document.origin['file']}, document {document.origin['row'] + 1}"
        there = self.examples[reason]
        if len(there) < EXAMPLES or hash < there[-1].hash:
            shown, _ = _redact()(document.text[: 4 * EXAMPLE_CHARS])  # what is shown tells nothing personal
            self.examples[reason] = _chosen([*there, Example(hash, shown[:EXAMPLE_CHARS], origin, value)])

    def add(self, other: "Tally") -> None:
        """Add another tally's counts and examples to these."""
        for name, table in other.tables.items():
            self.tables[name] += table
            if len(self.tables[name]) > 2 * MOST_KEYS:
                self.tables[name] = Counter(dict(self.tables[name].most_common(MOST_KEYS)))
        for reason, there in other.examples.items():
            self.examples[reason] = _chosen(self.examples[reason] + there)

    def written(self) -> dict[str, Any]:
        """Return what JSON can hold, in an order that follows from the counts alone."""
        tables = {name: dict(sorted(table.items())) for name, table in sorted(self.tables.items())}
        examples = {reason: [asdict(one) for one in there] for reason, there in sorted(self.examples.items())}
        return {"tables": tables, "examples": examples}

    @classmethod
    def read(cls, written: dict[str, Any]) -> "Tally":
        tally = cls()
        for name, table in written["tables"].items():
            tally.tables[name] = Counter(table)
        for reason, there in written["examples"].items():
            tally.examples[reason] = [Example(**one) for one in there]
        return tally


def _chosen(examples: list[Example]) -> list[Example]:
    """Choose those of the lowest hashes, of equal texts one."""
    first = {one.hash: one for one in sorted(examples, reverse=True)}
    return heapq.nsmallest(EXAMPLES, first.values())


@functools.cache
def _redact() -> Callable[[str], tuple[str, dict[str, int]]]:
    return redactor(KINDS)
