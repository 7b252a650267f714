"""Documents in: every kind of text that `--data.train` takes, read as a stream of pieces in flat memory.

Most documents are one piece; a long one is cut between a word and the newline after it. GPT-2's, Llama 3's and Qwen's
patterns never merge across that point, so the pieces' tokens are the whole document's. SentencePiece tokenizers may put
a space's mark before each piece.
"""

import io
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslm.data.corpus.cleaned import summary
from sslm.data.corpus.embedded import EMBEDDED, embedded_documents, embedded_identity
from sslm.data.corpus.files import JSON_LINES, find_text, format_of
from sslm.data.corpus.text_rows import (
    is_saved_dataset,
    json_row,
    load_dataset,
    open_file,
    open_parquet,
    text_in,
    text_of,
    values,
)
from sslm.data.corpus.utf8 import READ_BYTES, Utf8
from sslm.system.errors import UserError, one_line
from sslm.system.files import sha256_of
from sslm.system.terminal import count

Piece = tuple[str, bool]
"""(text, whether the document ends with it)"""

PIECE_CHARS = 1 << 18
LINE_END = re.compile(r"\w(?=\r?\n)")
MANY_BLANK_LINES = 100
"""A file of one document with so many blank lines may hold many documents."""


@dataclass(frozen=True)
class Source:
    """A corpus before tokenisation."""

    name: str
    record: list[dict[str, Any]]
    """What it is made of, contents hashed: sources with equal records hold equal documents."""
    pieces: Callable[[], Iterator[Piece]]
    num_bytes: int | None = None
    remarks: dict[str, str] = field(default_factory=dict)
    """What the user should be told, by what it is about; complete once the pieces have been read."""


def open_source(
    path: str | None, text_field: str, document_separator: str | None, hash_file: Callable[[Path], str] = sha256_of
) -> Source:
    """Open text as a source of documents.

    Args:
        path: file, glob, folder, hub name or saved dataset, or None for the embedded corpus.
        text_field: the text's field in .jsonl, .parquet and datasets.
        document_separator: regular expression between the documents of a .txt.
        hash_file: SHA-256 of a file's bytes; a caller that remembers hashes gives its own.

    Raises:
        UserError: nothing there, an unknown format, a bad expression.
    """
    separator = compiled_separator(document_separator)
    if path is None:
        return Source(EMBEDDED, [{"embedded": embedded_identity()}], embedded_documents)
    found = None if is_saved_dataset(Path(path)) else find_text(path)
    if found is None:
        return _dataset_source(path, text_field)
    remarks = {"files": f"{path}: {remark}"} if (remark := found.remark()) else {}
    reader = _Reader(text_field, separator, remarks)
    record = [{"file": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)} for file in found.files]
    how: dict[str, Any] = {"text_field": text_field, "document_separator": document_separator}
    if (cleaned := summary(Path(path))) is not None:
        how["cleaned"] = cleaned
    num_bytes = sum(file.stat().st_size for file in found.files)
    return Source(path, [how, *record], lambda: reader.read(found.files), num_bytes, remarks)


def compiled_separator(expression: str | None) -> re.Pattern[str] | None:
    """Compile what stands between the documents of a .txt; UserError if it can't be that."""
    if expression is None:
        return None
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError(f"--data.document_separator {expression}: not a regular expression ({error})") from None
    if pattern.match(""):
        raise UserError(f"--data.document_separator {expression}: matches the empty text, so it splits every character")
    return pattern


# ------------------------------------------------------------------------------------------------ reading files


@dataclass
class _Reader:
    """Reads files one after the other, and gathers what the user should know."""

    text_field: str
    separator: re.Pattern[str] | None
    remarks: dict[str, str]

    def read(self, files: list[Path]) -> Iterator[Piece]:
        num_texts = num_documents = 0
        for file in files:
            is_txt = format_of(file) == ".txt"
            num_texts += is_txt
            for text, is_end in self._read(file):
                num_documents += is_txt and is_end
                yield text, is_end
        if self.separator and 0 < num_documents == num_texts:
            self._remark_on_separator(files)

    def _read(self, file: Path) -> Iterator[Piece]:
        utf8 = Utf8(str(file))
        kind = format_of(file)
        try:
            if kind == ".parquet":
                yield from self._parquet(file, utf8)
            elif kind in JSON_LINES:
                yield from self._json_lines(file, utf8)
            else:
                yield from self._text(file, utf8)
        except (OSError, EOFError) as error:
            if getattr(error, "errno", None):
                raise
            raise UserError(f"{file}: can't be read, the file may be damaged ({one_line(error, None)})") from None
        utf8.check()
        if remark := utf8.remark():
            self.remarks[f"{file} bytes"] = remark

    def _text(self, file: Path, utf8: Utf8) -> Iterator[Piece]:
        with open_file(file) as stream:
            blank_lines = 0
            for text, is_end in pieces_of_text(utf8.chunks(stream), self.separator):
                blank_lines += text.count("\n\n") + text.count("\n\r\n")
                yield text, is_end
        if self.separator is None and blank_lines >= MANY_BLANK_LINES:
            self.remarks[f"{file} lines"] = (
                f"{file}: is one document of {count(blank_lines)} paragraphs; if blank lines divide documents, say so: "
                f"--data.document_separator '\\n\\s*\\n'"
            )

    def _remark_on_separator(self, files: list[Path]) -> None:
        assert self.separator is not None
        said = f"--data.document_separator {self.separator.pattern}: matches nowhere, so each file is one document"
        with open_file(next(file for file in files if format_of(file) == ".txt")) as stream:
            if b"\r\n" in stream.read(READ_BYTES):
                said += r"; the lines end with \r\n: write \r?\n for the end of a line"
        self.remarks["separator"] = said

    def _json_lines(self, file: Path, utf8: Utf8) -> Iterator[Piece]:
        with open_file(file) as stream:
            for number, line in enumerate(io.BufferedReader(stream), 1):
                if line.strip():
                    where = f"{file}, line {number}"
                    row = json_row(line, where, utf8)
                    yield from _document(text_in(row, where, self.text_field, utf8))

    def _parquet(self, file: Path, utf8: Utf8) -> Iterator[Piece]:
        for batch in open_parquet(file, self.text_field).iter_batches(batch_size=1024, columns=[self.text_field]):
            for text in values(batch.column(0)):
                yield from _document(text_of(text, str(file), self.text_field, utf8))


def pieces_of_text(text: Iterator[str], separator: re.Pattern[str] | None) -> Iterator[Piece]:
    """Cut what a .txt holds into pieces of documents; all of it is one document if nothing separates them."""
    return _whole(text) if separator is None else _split(text, separator)


def _whole(text: Iterator[str]) -> Iterator[Piece]:
    """Cut one document into pieces, before a newline that follows text."""
    rest = ""
    for chunk in text:
        rest = yield from _pieces_off(rest + chunk, 2 * PIECE_CHARS)
    yield rest, True


def _pieces_off(text: str, most: int) -> Generator[Piece, None, str]:
    """Cut pieces off a text until `most` characters are left at most, and return these.

    Where the cuts are follows from the text alone, not from how much of it was read at once.
    """
    start = 0
    while len(text) - start > most:
        found = LINE_END.search(text, start + PIECE_CHARS, start + 2 * PIECE_CHARS)
        end = found.end() if found else start + 2 * PIECE_CHARS
        yield text[start:end], False
        start = end
    return text[start:]


def _split(text: Iterator[str], separator: re.Pattern[str]) -> Iterator[Piece]:
    """Split text into documents. A match that ends where the text read so far ends may grow: wait for more."""
    rest = ""
    for chunk in text:
        rest += chunk
        start = 0
        for match in separator.finditer(rest):
            if match.end() == len(rest):
                break
            yield rest[start : match.start()], True
            start = match.end()
        rest = yield from _pieces_off(rest[start:], 16 * PIECE_CHARS)
    start = 0
    for match in separator.finditer(rest):
        yield rest[start : match.start()], True
        start = match.end()
    yield rest[start:], True


def _document(text: str | None) -> Iterator[Piece]:
    if text is not None:
        yield from _whole(iter([text]))


# ------------------------------------------------------------------------------------------------ Hugging Face datasets


def _dataset_source(given: str, field: str) -> Source:
    rows = load_dataset(given, field)
    remarks: dict[str, str] = {}

    def pieces() -> Iterator[Piece]:
        utf8 = Utf8(given)
        for batch in rows.select_columns([field]).with_format("arrow").iter(batch_size=1024):
            for text in values(batch.column(0)):
                yield from _document(text_of(text, given, field, utf8))
        utf8.check()
        if remark := utf8.remark():
            remarks["bytes"] = remark

    name, _, config = given.partition(":")
    record = [{"dataset": name, "config": config, "fingerprint": rows._fingerprint, "text_field": field}]
    return Source(given, record, pieces, rows.data.nbytes if rows.data is not None else None, remarks)
