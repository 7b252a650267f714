"""Tables whose cells a comma, a semicolon or a tab divides (.csv, .tsv), the first line naming the fields.

If it names none, fields go by their numbers, from 0: if all are asked for so, the first line is a row.

Quotes are the trouble of these formats: in some files they hold delimiters and ends of lines (RFC 4180), in others they
are text, and need not even come in pairs (GLUE's .tsv). A file is read by the first rule under which all of its rows
are as wide as its header: with quotes, with quotes that may follow a space, without. A .tsv that can be read without
them is, if they would make one row of several lines.
"""

import csv
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sslm.data.corpus.files import format_of
from sslm.data.labelled.lines import lines_of
from sslm.system.errors import UserError
from sslm.system.terminal import plural

ENDINGS = (".csv", ".tsv")
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
LARGEST_CELL = 1 << 30

Cells = Iterator[tuple[int, list[str]]]
"""(line, cells) of each row; a row may go over several lines, of which this is the first."""


class Rule(NamedTuple):
    """How cells are told apart, as csv calls it."""

    delimiter: str
    quoting: int
    skipinitialspace: bool = False


def fields(file: Path, named: Sequence[str]) -> list[str]:
    """Name the fields there are: by number if that is how they are asked for."""
    header = _header(file, Rule(_delimiter(file), csv.QUOTE_MINIMAL))
    return [str(number) for number in range(len(header))] if _are_numbers(named, header) else header


def rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, field -> value) of each row."""
    stat = file.stat()
    rule = _rule(file, stat.st_size, stat.st_mtime_ns)
    header = _header(file, rule)
    cells = _cells(file, rule)
    if _are_numbers(wanted, header):
        header = [str(number) for number in range(len(header))]
    else:
        next(cells)
    if missing := next((name for name in wanted if name not in header), None):
        raise UserError(f"{file}: no field {missing!r}; it has {', '.join(header)}")
    places = {name: header.index(name) for name in wanted}
    for line, row in cells:
        yield f"{file}, line {line}", {name: row[place] for name, place in places.items()}


def _are_numbers(wanted: Sequence[str], header: Sequence[str]) -> bool:
    """Whether fields are asked for by number, and not because the header names them so."""
    return bool(wanted) and all(name.isdecimal() for name in wanted) and not set(wanted) <= set(header)


def _delimiter(file: Path) -> str:
    """The delimiter that the first line has most often."""
    first = next(lines_of(file), "")
    return max(DELIMITERS[format_of(file)], key=first.count)


def _header(file: Path, rule: Rule) -> list[str]:
    _, cells = next(_cells(file, rule), (0, []))
    return [cell.strip(' "') for cell in cells]


@functools.lru_cache(maxsize=64)
def _rule(file: Path, size: int, changed: int) -> Rule:
    """Find out how a file is to be read; UserError if its rows are ragged whatever the rule."""
    delimiter, is_tabbed = _delimiter(file), format_of(file) == ".tsv"
    quoted, spaced = (Rule(delimiter, csv.QUOTE_MINIMAL, skips) for skips in (False, True))
    plain = Rule(delimiter, csv.QUOTE_NONE)
    found = {rule: _number_of_rows(file, rule) for rule in (quoted, spaced, plain)}
    as_wide = [rule for rule, number in found.items() if isinstance(number, int)]
    if not as_wide:
        raise UserError(str(found[plain if is_tabbed else quoted]))
    return plain if is_tabbed and plain in as_wide and found[plain] != found[as_wide[0]] else as_wide[0]


def _number_of_rows(file: Path, rule: Rule) -> int | str:
    """Count rows, or say in what the first that is not as wide as the header differs from it."""
    width = number = 0
    try:
        for line, row in _cells(file, rule):
            width, number = width or len(row), number + 1
            if len(row) != width:
                named = {",": "commas", ";": "semicolons", "\t": "tabs"}[rule.delimiter]
                has = f"{plural(len(row), 'field')} (divided by {named}), the first line names {width}"
                return f"{file}, line {line}: has {has}; quote texts that hold {named} or ends of lines"
    except UserError as error:
        return str(error)
    return number


def _cells(file: Path, rule: Rule) -> Cells:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(lines_of(file), **rule._asdict(), strict=True)
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
