"""The record of a cleaned corpus: what it was made of, how, and what became of it; and whether that is still so."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sslm.data.cleaning.document import sha256_of_text
from sslm.data.cleaning.files import read_lines
from sslm.data.cleaning.tally import Tally
from sslm.data.corpus.cleaned import FORMAT, checksum, read_record
from sslm.system.errors import one_line
from sslm.system.files import sha256_of


def record_of(
    settings: dict[str, Any], inputs: Sequence[dict[str, Any]], files: Sequence[dict[str, Any]], tally: Tally
) -> dict[str, Any]:
    """Put a record together: JSON's values alone, and no time, so that the same work leaves the same bytes."""
    record = {
        "format": FORMAT,
        "settings": settings,
        "inputs": list(inputs),
        "files": list(files),
        "counts": tally.written()["tables"],
    }
    return record | {"sha256": checksum(record)}


def verify(folder: Path, told: Callable[[int], None]) -> list[str]:
    """Say what of a cleaned corpus is not as its record says: files, their checksums, those of their documents.

    Args:
        told: hears of bytes that were read.

    Raises:
        UserError: there is no record, or it is damaged.
    """
    record = read_record(folder)
    wrong = []
    for one in record["files"]:
        file = folder / one["file"]
        if not file.is_file():
            wrong.append(f"{one['file']}: is missing")
            continue
        if file.stat().st_size != one["num_bytes"] or sha256_of(file) != one["sha256"]:
            wrong.append(f"{one['file']}: is not what was written")
        told(file.stat().st_size)
        wrong += [f"{one['file']}: {what}" for what in _wrong_documents(file, one)]
    known = {one["file"] for one in record["files"]}
    wrong += [
        f"{file.name}: is not in the record" for file in sorted(folder.glob("*.jsonl*")) if file.name not in known
    ]
    return wrong


def _wrong_documents(file: Path, written: dict[str, Any]) -> list[str]:
    documents = text_bytes = changed = 0
    try:
        for row in read_lines(file):
            documents += 1
            text_bytes += len(row["text"].encode())
            changed += sha256_of_text(row["text"]) != row["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"can't be read after {documents} documents ({one_line(error)})"]
    wrong = [f"{changed} documents are not what their checksums are of"] if changed else []
    if (documents, text_bytes) != (written["documents"], written["text_bytes"]):
        expected = f"{written['documents']} documents of {written['text_bytes']} bytes"
        wrong.append(f"holds {documents} documents of {text_bytes} bytes, not {expected}")
    return wrong
