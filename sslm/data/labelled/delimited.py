"""Tables whose cells a comma, a semicolon or a tab divides (.csv, .tsv), the first line naming the fields.

Quotes are the trouble of these formats: in some files they hold delimiters and ends of lines (RFC 4180), in others they
are text, and need not even come in pairs (GLUE's .tsv). A file is read by the first of these two rules under which all
of its rows are as wide as its header.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sslm.data.corpus.files import format_of
from sslm.data.labelled.lines import lines_of
from sslm.system.errors import UserError
from sslm.system.terminal import plural

ENDINGS = (".csv", ".tsv")
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
LARGEST_CELL = 1 << 30

Cells = Iterator[tuple[int, list[str]]]
"""(line, cells) of each row; a row may go over several lines, of which this is the first."""


def fields(file: Path, named: Sequence[str]) -> list[str]:
    """Name the fields there are."""
    return _header(file, _delimiter(file), csv.QUOTE_MINIMAL)


def rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, field -> value) of each row."""
    delimiter = _delimiter(file)
    quoting = _quoting(file, delimiter)
    header = _header(file, delimiter, quoting)
    if missing := next((name for name in wanted if name not in header), None):
        raise UserError(f"{file}: no field {missing!r}; it has {', '.join(header)}")
    places = {name: header.index(name) for name in wanted}
    cells = _cells(file, delimiter, quoting)
    next(cells)
    for line, row in cells:
        yield f"{file}, line {line}", {name: row[place] for name, place in places.items()}


def _delimiter(file: Path) -> str:
    """The delimiter that the first line has most often."""
    first = next(lines_of(file), "")
    return max(DELIMITERS[format_of(file)], key=first.count)


def _header(file: Path, delimiter: str, quoting: int) -> list[str]:
    _, cells = next(_cells(file, delimiter, quoting), (0, []))
    return [cell.strip() for cell in cells]


def _quoting(file: Path, delimiter: str) -> int:
    """Find out whether quotes hold cells together, or are text; UserError if rows are ragged under both rules."""
    faults = {}
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        if (fault := _fault(file, delimiter, quoting)) is None:
            return quoting
        faults[quoting] = fault
    raise UserError(faults[csv.QUOTE_MINIMAL if delimiter != "\t" else csv.QUOTE_NONE])


def _fault(file: Path, delimiter: str, quoting: int) -> str | None:
    """Say in what the first row that is not as wide as the header differs from it."""
    width = 0
    try:
        for line, row in _cells(file, delimiter, quoting):
            width = width or len(row)
            if len(row) != width:
                named = {",": "commas", ";": "semicolons", "\t": "tabs"}[delimiter]
                has = f"{plural(len(row), 'field')}, the first line names {width}"
                return (
                    f"{file}, line {line}: has {has} (divided by {named}); quote texts that hold any, or ends of lines"
                )
    except UserError as error:
        return str(error)
    return None


def _cells(file: Path, delimiter: str, quoting: int) -> Cells:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(lines_of(file), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{file}, line {first}: not a row of a table ({error})") from None
        if row:
            yield first, row
