"""Rows that hold a document's text: of .jsonl, .parquet and datasets, by one rule for all readers."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslm.data.corpus.files import COMPRESSIONS
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError, nearest, one_line


def open_file(file: Path) -> Any:
    """Open a file's bytes, decompressed."""
    import pyarrow  # heavy, and a prepared corpus needs none of it

    return pyarrow.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix.lower()))


def json_row(line: bytes, where: str, utf8: Utf8) -> dict[str, Any]:
    """Read a line of JSON Lines; UserError if it is no object."""
    try:
        row = json.loads(utf8.text(line).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not JSON; expected an object on each line (JSON Lines)") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object on each line (JSON Lines), got {type(row).__name__}")
    return row


def open_parquet(file: Path, text_field: str) -> Any:
    """Open a Parquet file that has the field; UserError if it is none, or has not."""
    import pyarrow.parquet  # heavy, and a prepared corpus needs none of it

    try:
        table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a Parquet file ({error})") from None
    if text_field not in table.schema_arrow.names:
        raise _no_field(str(file), text_field, table.schema_arrow.names)
    return table


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is a saved dataset."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def load_dataset(given: str, text_field: str) -> Any:
    """Load a saved dataset, or the training split of one of the hub, `NAME` or `NAME:CONFIG`.

    Raises:
        UserError: there is none, or it lacks the field.
    """
    import datasets  # heavy, and only datasets of the hub need it

    datasets.disable_progress_bars()
    name, _, config = given.partition(":")
    try:
        if is_saved_dataset(Path(given)):
            rows = datasets.load_from_disk(given)
            rows = rows["train"] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:  # whatever datasets, the hub or the network say, the cause is the name
        what = f"neither a file or folder here, nor a dataset that could be loaded ({one_line(error)})"
        raise UserError(f"{given}: {what}") from None
    if text_field not in rows.column_names:
        raise _no_field(given, text_field, rows.column_names)
    return rows


def values(column: Any) -> list[Any]:
    """List an Arrow column's values, text as bytes: Arrow does not look whether it is UTF-8."""
    import pyarrow

    with suppress(pyarrow.ArrowNotImplementedError):
        column = column.cast(pyarrow.large_binary())
    listed: list[Any] = column.to_pylist()
    return listed


def text_in(row: dict[str, Any], where: str, field: str, utf8: Utf8) -> str | None:
    """Return the text of a row, None if it is null; UserError if it lacks the field, or holds something else in it."""
    if field not in row:
        raise _no_field(where, field, list(row))
    return text_of(row[field], where, field, utf8)


def text_of(value: Any, where: str, field: str, utf8: Utf8) -> str | None:
    """Return a field's value as text, None if it is null; UserError if it is something else."""
    if value is not None and not isinstance(value, str | bytes):
        raise UserError(f"{where}: field {field!r} holds {type(value).__name__}, not text")
    return utf8.text(value) if isinstance(value, bytes) else value if value is None else utf8.sound(value)


def _no_field(where: str, field: str, fields: list[str]) -> UserError:
    there = ", ".join(fields) or "none"
    return UserError(
        f"{where}: no field {field!r}{nearest(field, fields)}; it has {there}; choose one with --data.text_field"
    )
