"""What is done to a block's documents, one step after the other: each edits or drops, and counts what it did."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sslm.data.cleaning.contamination import Contamination
from sslm.data.cleaning.document import Document
from sslm.data.cleaning.languages import detect
from sslm.data.cleaning.redact import redactor
from sslm.data.cleaning.rules import Rule
from sslm.data.cleaning.tally import NEAR, Tally

NEAR_EVERY = 8
"""One kept document in so many is looked at for being nearly dropped."""

Redactor = Callable[[str], tuple[str, dict[str, int]]]


class Step(Protocol):
    """Edits or drops documents of a block, in place."""

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        """Return those that are kept, in order."""


@dataclass(frozen=True)
class Edit:
    """Changes texts; a document that nothing is left of is dropped."""

    name: str
    editors: Mapping[str, Callable[[str], str]]

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        kept = []
        for document in documents:
            text = document.text
            for name, edit in self.editors.items():
                if (edited := edit(text)) != text:
                    tally.count("changed", f"{self.name}: {name}")
                    text = edited
            if text and not text.isspace():
                document.text = text
                kept.append(document)
            else:
                tally.drop(f"{self.name}: nothing left", document)
        return kept


@dataclass(frozen=True)
class Judge:
    """Drops what a quality rule does not let pass, and shows some of what it only just lets pass."""

    rule: Rule

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        kept = []
        for document, judged in zip(documents, self.rule.judge([one.text for one in documents]), strict=True):
            if (failure := judged.failure) is not None:
                tally.drop(failure.rule, document, f"{failure.value:.4g}, and {failure.threshold:.4g} is allowed")
                continue
            if judged.text != document.text:
                tally.count("changed", self.rule.prefix)
                document.text = judged.text
            kept.append(document)
        self._show_near(kept[::NEAR_EVERY], tally)
        return kept

    def _show_near(self, documents: list[Document], tally: Tally) -> None:
        """Show some of those that a stricter rule would drop."""
        for document, judged in zip(documents, self.stricter.judge([one.text for one in documents]), strict=True):
            if (failure := judged.failure) is not None:
                allowed = getattr(self.rule, failure.rule.partition(".")[2])
                tally.show(f"{NEAR}{failure.rule}", document, f"{failure.value:.4g}, and {allowed:.4g} is allowed")

    @functools.cached_property
    def stricter(self) -> Rule:
        """The rule with thresholds that are a tenth stricter."""
        names = [leaf.name for leaf in dataclasses.fields(self.rule) if leaf.name.startswith(("min_", "max_"))]
        numbers = {name: getattr(self.rule, name) for name in names}
        moved = {name: _stricter(number, name.startswith("min_")) for name, number in numbers.items() if number}
        return dataclasses.replace(self.rule, **moved)


def _stricter(threshold: float, is_least: bool) -> float:
    """Move a threshold by a tenth; whole numbers stay whole, and shares shares.

    >>> _stricter(50, True), _stricter(0.2, False), _stricter(0.95, True)
    (55, 0.18000000000000002, 1.0)
    """
    moved = threshold * (1.1 if is_least else 0.9)
    if isinstance(threshold, int):
        return math.ceil(moved - 1e-9) if is_least else math.floor(moved)
    return min(moved, 1.0) if threshold <= 1 else moved


@dataclass(frozen=True)
class Language:
    """Notes each document's language, and drops those of other languages than the wanted ones."""

    wanted: tuple[str, ...]

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        kept = []
        for document, (language, score) in zip(documents, detect([one.text for one in documents]), strict=True):
            document.language = language
            tally.count("languages read", language)
            said = document.metadata.get("language", document.metadata.get("lang"))
            if isinstance(said, str) and said and said.lower()[:2] != language[:2]:
                tally.count("consistency", "language: not what is detected")
            if self.wanted and language not in self.wanted:
                tally.drop(f"languages: {language}", document, f"score {score:.2f}")
            else:
                kept.append(document)
        return kept


@dataclass(frozen=True)
class Redact:
    """Replaces what is personal or secret by placeholders, in texts and in their rows' other fields."""

    kinds: tuple[str, ...]

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        redact = redactor(self.kinds)
        for document in documents:
            before = document.text
            document.text = self._edited(before, redact, tally)
            document.metadata = self._edited(document.metadata, redact, tally)
            if document.text != before:
                tally.count("changed", "redact")
        return documents

    def _edited(self, value: Any, redact: Redactor, tally: Tally) -> Any:
        if isinstance(value, dict):
            return {name: self._edited(item, redact, tally) for name, item in value.items()}
        if isinstance(value, list):
            return [self._edited(item, redact, tally) for item in value]
        if not isinstance(value, str):
            return value
        text, found = redact(value)
        for kind, number in found.items():
            tally.count("redacted", kind, number)
        return text


@dataclass(frozen=True)
class Decontaminate:
    """Drops documents in which a text stands that models are evaluated on."""

    texts: Contamination

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        kept = []
        for document, found in zip(documents, self.texts.found_in([one.text for one in documents]), strict=True):
            if found is None:
                kept.append(document)
            else:
                tally.drop(f"contamination: {found}", document)
        return kept
