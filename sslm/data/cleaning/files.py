"""Files of documents, compressed lines of JSON, as blocks and the cleaned corpus have them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow

from sslm.data.cleaning.document import Document
from sslm.data.corpus.text_rows import open_file

ENDING = ".jsonl.zst"


def write_documents(file: Path, documents: Iterable[Document]) -> None:
    with pyarrow.output_stream(str(file), compression="zstd") as stream:
        for document in documents:
            stream.write(document.line())


def read_documents(file: Path) -> Iterator[Document]:
    """Read what `write_documents` wrote."""
    for row in read_lines(file):
        yield Document(row["text"], row["origin"], row["metadata"], row.get("language"))


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    rest = b""
    with open_file(file) as stream:
        while chunk := stream.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)
