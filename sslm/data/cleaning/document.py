"""A document while it is cleaned, and the line that it becomes."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

ORIGIN_FIELDS = {"file", "row"}


@dataclass(slots=True)
class Document:
    """A text, and what is known of it."""

    text: str
    origin: dict[str, Any]
    """{"file": name, "row": number of its document, from 0}, of the first clean that it went through."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Its row's other fields."""
    language: str | None = None
    """ISO 639-1 code, if it was asked for."""

    @classmethod
    def of_row(cls, text: str, file: str, row: int, fields: dict[str, Any]) -> "Document":
        """Take a row's text and other fields; what an earlier clean wrote keeps its origin and metadata."""
        origin, metadata = fields.get("origin"), fields.get("metadata")
        if isinstance(origin, dict) and origin.keys() == ORIGIN_FIELDS and isinstance(metadata, dict):
            language = fields.get("language")
            return cls(text, origin, metadata, language if isinstance(language, str) else None)
        return cls(text, {"file": file, "row": row}, fields)

    def line(self) -> bytes:
        """Write the document as a line of JSON, with its text's checksum."""
        row: dict[str, Any] = {"text": self.text, "origin": self.origin, "sha256": sha256_of_text(self.text)}
        if self.language is not None:
            row["language"] = self.language
        return json.dumps(row | {"metadata": plain(self.metadata)}, ensure_ascii=False).encode() + b"\n"


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """Return what JSON can hold: dates and decimals as text, bytes as their number, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value).encode(errors="replace").decode()
