"""Rows in: every kind of file or dataset that labelled data comes in, as rows with named fields."""

import dataclasses
import difflib
import glob
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from sslm.config import DataConfig
from sslm.data.corpus.files import COMPRESSIONS, format_of, walk
from sslm.data.corpus.text_rows import is_saved_dataset
from sslm.data.labelled import delimited, hub, json_rows, parquet_rows, word_lines
from sslm.data.labelled.task import Column
from sslm.data.labelled.values import Row
from sslm.system.errors import UserError, nearest, short

READERS: dict[str, ModuleType] = {
    ending: module for module in (delimited, json_rows, parquet_rows, word_lines) for ending in module.ENDINGS
}
"""Ending of a file -> who reads it."""
ENDINGS_IN_WORDS = f"{', '.join(READERS)} (also with {' or '.join(COMPRESSIONS)})"
MOST_FIELDS = 20
"""How many fields a sentence lists."""

Columns = Mapping[str, str]
"""Role -> name of the field that is read."""


@dataclass(frozen=True)
class Table:
    """Rows of one file or more, or of a dataset."""

    name: str
    record: list[dict[str, Any]]
    """What it is made of, contents hashed: tables with equal records hold equal rows."""
    fields: tuple[str, ...]
    """Names of the fields there are; one that stands there twice can't be chosen."""
    read: Callable[[Iterable[str]], Iterator[tuple[str, dict[str, Any]]]]
    """Yields (where, field -> value) of each row, for some fields at least."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Field -> names of its classes by number, as far as a dataset tells them."""

    def rows(self, columns: Columns, may_lack: Container[str] = ()) -> Iterator[Row]:
        """Read the rows, values by role; UserError if one lacks a field whose role is not among those it may lack."""
        needed = [name for role, name in columns.items() if role not in may_lack]
        for where, values in self.read(dict.fromkeys(columns.values())):
            if lacking := next((name for name in needed if name not in values), None):
                raise UserError(f"{where}: no field {lacking!r}; it has {', '.join(values) or 'none'}")
            yield Row(where, {role: values.get(name) for role, name in columns.items()}, dict(columns))

    def choose(self, columns: Iterable[Column]) -> dict[str, str]:
        """Find the fields to read: role -> name.

        Raises:
            UserError: one that is needed is not there, or is there twice.
        """
        chosen = {}
        for column in columns:
            there = [name for name in column.names if name in self.fields]
            if not there and column.is_needed:
                raise UserError(no_field(self.name, column, self.fields))
            if there:
                if self.fields.count(there[0]) > 1:
                    what = f"{self.name}: the field {there[0]!r} is there {self.fields.count(there[0])} times"
                    raise UserError(f"{what}; rename all but one, or choose another with --{column.flag}")
                chosen[column.role] = there[0]
        return chosen


def no_field(where: str, column: Column, fields: Iterable[str]) -> str:
    """Say that a field is not there, and name those that are, the most alike first."""
    name = column.names[0]
    alike = sorted(dict.fromkeys(fields), key=lambda f: -difflib.SequenceMatcher(None, name.lower(), f.lower()).ratio())
    there = ", ".join(short(name) for name in alike[:MOST_FIELDS]) or "none"
    more = f" and {len(alike) - MOST_FIELDS} more" if len(alike) > MOST_FIELDS else ""
    close = nearest(name, alike)
    return f"{where}: no field {short(name)!r}{close}; it has {there}{more}; choose one with --{column.flag}"


def open_table(given: str, data: DataConfig, hash_file: Callable[[Path], str], is_held_out: bool = False) -> Table:
    """Open labelled data.

    Args:
        given: file, pattern, folder, saved dataset or hub name.
        data: names the fields, by which a first line that names columns is told from one that doesn't.
        hash_file: SHA-256 of a file's bytes.
        is_held_out: whether a dataset's held-out split is meant.

    Raises:
        UserError: nothing is there, or it can't be read.
    """
    files = None if is_saved_dataset(Path(given)) else find(given)
    if files is None:
        opened = hub.open_rows(given, is_held_out)
        return Table(given, opened.record, opened.fields, opened.read, opened.class_names)
    reader = READERS[format_of(files[0])]
    if other := next((file for file in files if READERS[format_of(file)] is not reader), None):
        raise UserError(f"{given}: {files[0].name} and {other.name} are of different kinds; give one kind at a time")
    flags = [setting for setting in dataclasses.fields(data) if setting.name.endswith("_field")]
    named = [getattr(data, flag.name) for flag in flags if getattr(data, flag.name) != flag.default]

    def read(fields: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in files:
            yield from reader.rows(file, tuple(fields))

    record = [{"file": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)} for file in files]
    return Table(given, record, tuple(reader.fields(files[0], named)), read)


def find(given: str) -> list[Path] | None:
    """Find the files that a path, a folder or a pattern names; None if it can only be a dataset's name."""
    path = Path(given)
    if path.is_dir():
        files = [file for file in sorted(walk(path)) if format_of(file) in READERS]
    elif path.is_file():
        if format_of(path) not in READERS:
            raise UserError(f"{given}: unknown kind of file; expected one ending in {ENDINGS_IN_WORDS}")
        files = [path]
    elif glob.has_magic(given):
        files = sorted(Path(name) for name in glob.glob(given, recursive=True) if format_of(Path(name)) in READERS)
    elif format_of(path) in READERS or given.startswith((".", "/")) or given.count("/") > 1:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{given}: there is no such file or folder{nearest(path.name, beside)}")
    else:
        return None
    full = [file for file in files if file.stat().st_size]
    if not full:
        what = f"no files ending in {ENDINGS_IN_WORDS}" if not files else "nothing but empty files"
        raise UserError(f"{given}: {what}" if len(files) != 1 else f"{given}: the file is empty")
    return full
