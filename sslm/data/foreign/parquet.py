"""Parquet columns of lists of integers: a row is a document.

pyarrow is imported in functions: it is heavy, and only Parquet needs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sslm.data.foreign.files import CHUNK_TOKENS, Chunk, Options, TokenFile
from sslm.system.errors import UserError, one_line

IDS_COLUMNS = ("input_ids", "tokens", "ids")
"""Usual names of a column of ids, if the user names none."""


def recognises(path: Path, options: Options) -> Path | None:
    if path.suffix.lower() == ".parquet":
        with suppress(UserError), _parquet_file(path) as table:
            return path if _ids_column(table.schema_arrow, options.text_field) else None
    return None


def _ids_column(schema: Any, text_field: str) -> str | None:
    """Find the column of lists of numbers: the user's if it is there, or the first of the usual ones."""
    wanted = (text_field,) if text_field in schema.names else IDS_COLUMNS
    there = [name for name in wanted if name in schema.names]
    return next((name for name in there if _is_list_of_numbers(schema.field(name).type)), None)


def _is_list_of_numbers(kind: Any) -> bool:
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list) and bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))


def open_tokens(path: Path, options: Options) -> TokenFile:
    import pyarrow.types as types

    with _parquet_file(path) as table:
        schema = table.schema_arrow
    column = _ids_column(schema, options.text_field)
    if column is None:
        names = ", ".join(dict.fromkeys([options.text_field, *IDS_COLUMNS]))
        raise UserError(
            f"{path}: has no column of lists of ids named {names}; it has {', '.join(schema.names) or 'none'}; "
            f"choose one with --data.text_field"
        )
    kind = schema.field(column).type
    if not types.is_integer(kind.value_type):
        raise UserError(
            f"{path}: column {column!r} holds {kind}, not lists of whole numbers; choose another with --data.text_field"
        )
    return TokenFile(path, lambda: _parquet_chunks(path, column))


@contextmanager
def _damage_told(path: Path, verdict: str) -> Iterator[None]:
    """Turn pyarrow's errors about a file's contents into a UserError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{path}: {verdict} ({one_line(error)})") from None


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    with _damage_told(path, "not a Parquet file, or a damaged one"):
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _parquet_chunks(path: Path, column: str) -> Iterator[Chunk]:
    import pyarrow.compute

    row = 0
    with _parquet_file(path) as table, _damage_told(path, "can't be read, it may be damaged"):
        for batch in table.iter_batches(batch_size=_rows_at_once(table, column), columns=[column]):
            lists = batch.column(0)
            ids = lists.flatten()
            if lists.null_count or ids.null_count:
                where = f"{path}: column {column!r} has null in rows {row} to {row + len(lists)}"
                raise UserError(f"{where}; drop these rows, or fill in their ids")
            lengths = pyarrow.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
            yield ids.to_numpy(zero_copy_only=False), np.cumsum(lengths, dtype=np.int64)
            row += len(lists)


def _rows_at_once(table: Any, column: str) -> int:
    """Number of rows that hold about CHUNK_TOKENS ids."""
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    if not groups:
        return 1
    number = next(i for i in range(groups[0].num_columns) if groups[0].column(i).path_in_schema.split(".")[0] == column)
    num_values = sum(group.column(number).num_values for group in groups)
    return int(min(max(CHUNK_TOKENS * table.metadata.num_rows // max(num_values, 1), 1), 1 << 16))
