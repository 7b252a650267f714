"""Raw files to blocks: a reader cuts a file into blocks of a few MB, cheaply; whoever has a block parses it.

Where a file is cut follows from its bytes alone, so that blocks are the same in every process.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sslm.data.cleaning.document import Document
from sslm.data.corpus.documents import compiled_separator, pieces_of_text
from sslm.data.corpus.files import JSON_LINES, format_of
from sslm.data.corpus.text_rows import json_row, load_dataset, open_file, open_parquet, text_in, text_of, values
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError, one_line
from sslm.system.terminal import MIB, bytes_in_words

BLOCK_BYTES = 8 * MIB
ROWS_AT_ONCE = 256
LONGEST_DOCUMENT = 64 * MIB
"""Characters of a document, which is held in memory."""

LONGEST_LINE = 4 * LONGEST_DOCUMENT


@dataclass(frozen=True)
class Reading:
    """How documents are read from files."""

    text_field: str = "text"
    document_separator: str | None = None
    block_bytes: int = BLOCK_BYTES


class Block(Protocol):
    """Consecutive documents of a file as they were read."""

    def documents(self, name: str, reading: Reading, utf8: Utf8) -> Iterator[Document]:
        """Parse them; documents without text are left out.

        Args:
            name: the file's, for their origin.
            utf8: counts what is not UTF-8.
        """

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True)
class Lines:
    """Lines of JSON."""

    first: int
    lines: list[bytes]

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.lines))

    def documents(self, name: str, reading: Reading, utf8: Utf8) -> Iterator[Document]:
        for number, line in enumerate(self.lines, self.first):
            if line.strip():
                where = f"{name}, line {number + 1}"
                row = json_row(line, where, utf8)
                text = text_in(row, where, reading.text_field, utf8)
                del row[reading.text_field]
                yield from _document(text, name, number, row)


@dataclass(frozen=True)
class Rows:
    """Rows of a table."""

    first: int
    tables: list[Any]
    """Arrow's."""

    @property
    def num_bytes(self) -> int:
        return sum(int(table.nbytes) for table in self.tables)

    def documents(self, name: str, reading: Reading, utf8: Utf8) -> Iterator[Document]:
        number = self.first
        for table in self.tables:
            try:
                others = table.drop_columns([reading.text_field]).to_pylist()
            except ValueError as error:  # text that is none
                raise UserError(f"{name}, row {number + 1} or later: {one_line(error)}") from None
            for value, fields in zip(values(table.column(reading.text_field)), others, strict=True):
                yield from _document(text_of(value, name, reading.text_field, utf8), name, number, fields)
                number += 1


@dataclass(frozen=True)
class Texts:
    """Documents of a .txt."""

    first: int
    texts: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.texts))

    def documents(self, name: str, reading: Reading, utf8: Utf8) -> Iterator[Document]:
        for number, text in enumerate(self.texts, self.first):
            yield from _document(utf8.sound(text), name, number, {})


def _document(text: str | None, name: str, number: int, fields: dict[str, Any]) -> Iterator[Document]:
    if text is not None and len(text) > LONGEST_DOCUMENT:
        raise _too_long(f"{name}, document {number + 1}")
    if text is not None and text.strip():
        yield Document.of_row(text, name, number, fields)


def _too_long(where: str) -> UserError:
    return UserError(
        f"{where}: a document of more than {bytes_in_words(LONGEST_DOCUMENT)}; if it holds many, say what stands "
        f"between them: --document_separator '\\n\\s*\\n'"
    )


def blocks_of(file: Path, reading: Reading) -> Iterator[Block]:
    """Cut a file into blocks.

    Raises:
        UserError: it is damaged, not text, or lacks the field.
    """
    kind = format_of(file)
    if kind == ".parquet":
        batches = open_parquet(file, reading.text_field).iter_batches(batch_size=ROWS_AT_ONCE)
        return _row_blocks(batches, reading.block_bytes)
    return _line_blocks(file, reading.block_bytes) if kind in JSON_LINES else _text_blocks(file, reading)


def blocks_of_dataset(name: str, reading: Reading) -> Iterator[Block]:
    """Cut a dataset's rows into blocks; UserError if there is no such dataset, or no such field."""
    rows = load_dataset(name, reading.text_field).with_format("arrow")
    return _row_blocks(rows.iter(batch_size=ROWS_AT_ONCE), reading.block_bytes)


def _line_blocks(file: Path, block_bytes: int) -> Iterator[Block]:
    lines: list[bytes] = []
    first = size = 0
    with open_file(file) as stream:
        buffered = io.BufferedReader(stream, buffer_size=MIB)
        while line := buffered.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{file}, line {first + len(lines) + 1}: longer than {bytes_in_words(LONGEST_LINE)}")
            lines.append(line)
            size += len(line)
            if size >= block_bytes:
                yield Lines(first, lines)
                first += len(lines)
                lines, size = [], 0
    if lines:
        yield Lines(first, lines)


def _row_blocks(batches: Iterator[Any], block_bytes: int) -> Iterator[Block]:
    tables: list[Any] = []
    first = rows = size = 0
    for batch in batches:
        tables.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if size >= block_bytes:
            yield Rows(first, tables)
            first += rows
            tables, rows, size = [], 0, 0
    if tables:
        yield Rows(first, tables)


def _text_blocks(file: Path, reading: Reading) -> Iterator[Block]:
    separator, utf8 = compiled_separator(reading.document_separator), Utf8(str(file))
    texts: list[str] = []
    first = size = 0
    pieces: list[str] = []
    length = 0
    with open_file(file) as stream:
        for piece, is_end in pieces_of_text(utf8.chunks(stream), separator):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_DOCUMENT:
                raise _too_long(str(file))
            if is_end:
                texts.append("".join(pieces))
                size += length
                pieces, length = [], 0
            if size >= reading.block_bytes:
                yield Texts(first, texts)
                first += len(texts)
                texts, size = [], 0
    utf8.check()
    if texts:
        yield Texts(first, texts)
