"""What is odd in a corpus' fields and encoding is counted: nothing is dropped for it."""

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.tally import Tally
from sslm.data.corpus.utf8 import REPLACEMENT

TIME_FIELDS = re.compile(r"(?:^|_)(?:date|time|timestamp|created|modified|published|crawled|updated)(?:$|_|s$|at$)")
"""Names of fields that say when."""
LENGTH_FIELDS = {"length", "num_chars", "n_chars", "char_count", "text_length"}
DOMAIN_FIELDS = ("domain", "host", "hostname")
NUMBERED_TIMES = (1e8, 1e11)
"""Numbers from 1973 on are seconds since 1970; from the second on they are milliseconds."""
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Consistency:
    """Counts, in tables "fields", "consistency" and "domains", what contradicts itself or varies.

    Args:
        began: when this clean began [seconds since 1970]; what says a day later is in the future.
    """

    began: float

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        kinds: Counter[str] = Counter()
        for document in documents:
            kinds[_kind(document.metadata)] += 1
            if REPLACEMENT in document.text:
                tally.count("consistency", "text with U+FFFD, in place of what could not be read")
            for odd in self._odd(document):
                tally.count("consistency", odd)
                tally.show(odd, document)
            if domain := _domain(document.metadata.get("url")):
                tally.count("domains", domain)
        for kind, number in kinds.items():
            tally.count("fields", kind, number)
        return documents

    def _odd(self, document: Document) -> list[str]:
        found = []
        fields = document.metadata
        latest = datetime.fromtimestamp(self.began, UTC) + DAY
        for name, value in fields.items():
            if TIME_FIELDS.search(name.lower()) and (when := _time(value)) is not None and when > latest:
                found.append(f"{name}: in the future")
            if name.lower() in LENGTH_FIELDS and type(value) is int and value not in _lengths(document.text):
                found.append(f"{name}: not the text's length")
        domain = _domain(fields.get("url"))
        for name in DOMAIN_FIELDS:
            said = fields.get(name)
            if domain and isinstance(said, str) and said and not _same_domain(domain, said):
                found.append(f"{name}: not the url's")
        return found


def _kind(fields: dict[str, Any]) -> str:
    """Name fields and their types: documents of one corpus mostly have one kind."""
    return ", ".join(f"{name[:40]}: {type(value).__name__}" for name, value in sorted(fields.items())[:40])[:1000]


def _lengths(text: str) -> tuple[int, int, int]:
    return len(text), len(text.encode()), len(text.split())


def _time(value: Any) -> datetime | None:
    """Read a time as ISO 8601, or as seconds or milliseconds since 1970; None if it is none."""
    try:
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= NUMBERED_TIMES[0]:
            return datetime.fromtimestamp(value / 1000 if value >= NUMBERED_TIMES[1] else value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _domain(url: Any) -> str | None:
    if not isinstance(url, str):
        return None
    try:
        return urlsplit(url[:2000]).hostname
    except ValueError:
        return None


def _same_domain(domain: str, said: str) -> bool:
    said = said.lower().strip().removeprefix("www.")
    domain = domain.removeprefix("www.")
    return domain == said or domain.endswith(f".{said}")
