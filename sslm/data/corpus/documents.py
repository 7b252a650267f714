"""Documents in: every kind of text that `--data.train` takes, read as a stream of pieces in flat memory.

Most documents are one piece; a long one is cut between a word and the newline after it. GPT-2's, Llama 3's and Qwen's
patterns never merge across that point, so the pieces' tokens are the whole document's. SentencePiece tokenizers may put
a space's mark before each piece.
"""

import codecs
import glob
import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslm.data.corpus.embedded import EMBEDDED, embedded_documents, embedded_identity
from sslm.system.errors import UserError, nearest, one_line
from sslm.system.files import sha256_of

Piece = tuple[str, bool]
"""(text, whether the document ends with it)"""

PIECE_CHARS = 1 << 18
LINE_END = re.compile(r"\w(?=\r?\n)")
READ_BYTES = 1 << 20
COMPRESSIONS = (".gz", ".zst")
FORMATS = (".txt", ".jsonl", ".parquet")
INVALID_SHARE = 0.01
"""A file with a larger share of bytes that are not UTF-8 is not text."""


@dataclass(frozen=True)
class Source:
    """A corpus before tokenisation."""

    name: str
    record: list[dict[str, Any]]
    """What it is made of, contents hashed: sources with equal records hold equal documents."""
    pieces: Callable[[], Iterator[Piece]]
    num_bytes: int | None = None


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
    separator = _compiled(document_separator)
    if path is None:
        return Source(EMBEDDED, [{"embedded": embedded_identity()}], embedded_documents)
    files = None if _is_saved_dataset(Path(path)) else _files(path)
    if files is None:
        return _dataset_source(path, text_field)
    _check_files(path, files)

    def pieces() -> Iterator[Piece]:
        for file in files:
            yield from _read(file, text_field, separator)

    record = [{"file": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)} for file in files]
    how = {"text_field": text_field, "document_separator": document_separator}
    return Source(path, [how, *record], pieces, sum(file.stat().st_size for file in files))


# ------------------------------------------------------------------------------------------------ finding files


def _files(given: str) -> list[Path] | None:
    """List the files that a user's path, folder or pattern names, or None if it can only be a dataset's name."""
    path = Path(given)
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.is_file() and _format(f) in FORMATS)
        if not found:
            raise UserError(f"{given}: no text in this folder; expected files ending in {_formats()}")
        return found
    if path.is_file():
        return [path]
    if glob.has_magic(given):
        found = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        if not found:
            raise UserError(f"{given}: no file matches this pattern")
        return found
    if path.suffix in (*FORMATS, *COMPRESSIONS) or given.startswith((".", "/")) or given.count("/") > 1:
        there = path.parent.iterdir() if path.parent.is_dir() else []
        raise UserError(f"{given}: there is no such file or folder{nearest(path.name, [f.name for f in there])}")
    return None


def _check_files(given: str, files: list[Path]) -> None:
    for file in files:
        if _format(file) not in FORMATS:
            raise UserError(f"{file}: unknown kind of file; expected one ending in {_formats()}")
    if not any(file.stat().st_size for file in files):
        what = "the file is empty" if len(files) == 1 else f"all {len(files)} files are empty"
        raise UserError(f"{given}: {what}")


def _format(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def is_text(file: Path) -> bool:
    """Whether a file's name is of a kind that is read as text."""
    return _format(file) in FORMATS


def _formats() -> str:
    return f"{', '.join(FORMATS)} (also with {' or '.join(COMPRESSIONS)})"


def _compiled(expression: str | None) -> re.Pattern[str] | None:
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


def _read(file: Path, text_field: str, separator: re.Pattern[str] | None) -> Iterator[Piece]:
    kind = _format(file)
    try:
        if kind == ".parquet":
            yield from _read_parquet(file, text_field)
        elif kind == ".jsonl":
            yield from _read_jsonl(file, text_field)
        else:
            text = _decoded(file)
            yield from (_split(text, separator) if separator else _whole(text))
    except (OSError, EOFError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{file}: can't be read, the file may be damaged ({one_line(error, None)})") from None


def _open(file: Path) -> Any:
    import pyarrow  # heavy, and a prepared corpus needs none of it

    return pyarrow.input_stream(str(file), compression="detect")


def _decoded(file: Path) -> Iterator[str]:
    """Read a file's text in chunks. Invalid bytes become U+FFFD; NUL bytes, or more than 1 % invalid, are refused."""
    invalid = total = 0

    def replace(error: UnicodeError) -> tuple[str, int]:
        nonlocal invalid
        assert isinstance(error, UnicodeDecodeError)
        invalid += error.end - error.start
        return "\ufffd", error.end

    codecs.register_error("sslm.count", replace)
    decoder = codecs.getincrementaldecoder("utf-8")("sslm.count")
    with _open(file) as stream:
        while chunk := stream.read(READ_BYTES):
            if b"\0" in chunk:
                raise UserError(f"{file}: not text (NUL bytes at {total + chunk.index(0)}); UTF-8 text is needed")
            text = decoder.decode(chunk)
            yield text.removeprefix("\ufeff") if total == 0 else text
            total += len(chunk)
            if invalid > INVALID_SHARE * max(total, READ_BYTES):
                break
        else:
            yield decoder.decode(b"", final=True)
    if invalid > INVALID_SHARE * total:
        raise UserError(
            f"{file}: not UTF-8 text ({invalid} of the first {total} bytes are invalid); convert it, for example: "
            f"iconv -f latin1 -t utf-8 {file.name} > utf8.txt"
        )


def _whole(text: Iterator[str]) -> Iterator[Piece]:
    """Cut one document into pieces, before a newline that follows text."""
    rest = ""
    for chunk in text:
        rest = yield from _pieces_off(rest + chunk, 2 * PIECE_CHARS)
    yield rest, True


def _pieces_off(text: str, most: int) -> Generator[Piece, None, str]:
    """Cut pieces off a text until `most` characters are left at most, and return these."""
    while len(text) > most:
        found = LINE_END.search(text, PIECE_CHARS)
        cut = found.end() if found else 2 * PIECE_CHARS
        yield text[:cut], False
        text = text[cut:]
    return text


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


def _document(text: Any, where: str, field: str) -> Iterator[Piece]:
    if text is None:
        return
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        text = text.encode("utf-8", "replace").decode()
    yield from _whole(iter([text]))


def _read_jsonl(file: Path, field: str) -> Iterator[Piece]:
    with _open(file) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{file}, line {number}: not JSON") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: expected an object, got {type(row).__name__}")
            if field not in row:
                raise UserError(_no_field(f"{file}, line {number}", field, list(row)))
            yield from _document(row[field], f"{file}, line {number}", field)


def _read_parquet(file: Path, field: str) -> Iterator[Piece]:
    import pyarrow.parquet  # heavy, and a prepared corpus needs none of it

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a Parquet file ({error})") from None
    if field not in table.schema_arrow.names:
        raise UserError(_no_field(str(file), field, table.schema_arrow.names))
    for batch in table.iter_batches(batch_size=1024, columns=[field]):
        for text in batch.column(0).to_pylist():
            yield from _document(text, str(file), field)


def _no_field(where: str, field: str, fields: list[str]) -> str:
    there = ", ".join(fields) or "none"
    return f"{where}: no field {field!r}{nearest(field, fields)}; it has {there}; choose one with --data.text_field"


# ------------------------------------------------------------------------------------------------ Hugging Face datasets


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _dataset_source(given: str, field: str) -> Source:
    import datasets  # heavy, and only datasets of the hub need it

    datasets.disable_progress_bars()
    name, _, config = given.partition(":")
    try:
        if _is_saved_dataset(Path(given)):
            rows = datasets.load_from_disk(given)
            rows = rows["train"] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:  # whatever datasets, the hub or the network say, the cause is the name
        what = f"neither a file or folder here, nor a dataset that could be loaded ({one_line(error)})"
        raise UserError(f"{given}: {what}") from None
    if field not in rows.column_names:
        raise UserError(_no_field(given, field, rows.column_names))

    def pieces() -> Iterator[Piece]:
        for batch in rows.select_columns([field]).iter(batch_size=1024):
            for text in batch[field]:
                yield from _document(text, given, field)

    record = [{"dataset": name, "config": config, "fingerprint": rows._fingerprint, "text_field": field}]
    return Source(given, record, pieces, rows.data.nbytes if rows.data is not None else None)
