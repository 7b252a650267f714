"""What is done to a block's documents, one step after the other: each edits or drops, and counts what it did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.tally import Tally


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
