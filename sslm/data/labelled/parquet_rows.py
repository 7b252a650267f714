"""Rows of Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sslm.system.errors import UserError, one_line

ENDINGS = (".parquet",)
ROWS_AT_ONCE = 1024


def fields(file: Path, named: Sequence[str]) -> list[str]:
    """Name the columns."""
    return list(_opened(file).schema_arrow.names)


def rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, field -> value) of each row."""
    import pyarrow

    table = _opened(file)
    if missing := next((name for name in wanted if name not in table.schema_arrow.names), None):
        raise UserError(f"{file}: no field {missing!r}; it has {', '.join(table.schema_arrow.names)}")
    number = 0
    try:
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(wanted)):
            for row in batch.to_pylist():
                yield f"{file}, row {number}", row
                number += 1
    except (pyarrow.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{file}, after row {number}: can't be read ({one_line(error)})") from None


def _opened(file: Path) -> Any:
    import pyarrow.parquet  # heavy, and a corpus that is prepared needs none of it

    try:
        return pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a Parquet file ({one_line(error)})") from None
