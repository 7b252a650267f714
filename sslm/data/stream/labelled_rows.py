"""Labelled rows that are validated on or predicted: which windows each has, and what its table says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sslm.data.labelled.rows import Rows
from sslm.data.labelled.task import Example
from sslm.data.stream.recipe import Ints, Recipe
from sslm.data.stream.stream import Places, Stream, StreamSource
from sslm.data.stream.vocabulary import Vocabulary

READ_AT_ONCE = 256


class Row(NamedTuple):
    """A row of one of several tables."""

    source: int
    number: int


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows, of one table or more."""

    stream: Stream
    places: Places
    """Of the windows, all of those of a row one after the other; they are numbered so."""
    tables: Sequence[Rows]
    """The table of each source's rows."""
    recipe: Recipe
    vocabulary: Vocabulary

    @cached_property
    def rows(self) -> list[Row]:
        """The row that each window is of."""
        numbers = [row_numbers(source) for source in self.stream.sources]
        sources, windows = self.places.sources.tolist(), self.places.positions.tolist()
        return [Row(source, int(numbers[source][window])) for source, window in zip(sources, windows, strict=True)]

    @cached_property
    def has_truth(self) -> list[bool]:
        """Whether each table says what is right."""
        return [bool({"label", "target"} & table.columns.keys()) for table in self.tables]

    @cached_property
    def examples(self) -> dict[Row, Example]:
        """What the tables say of the rows; they are read once more."""
        wanted = set(self.rows)
        read = ((source, example) for source, rows in enumerate(self.tables) for example in rows.examples())
        return {row: example for source, example in read if (row := Row(source, example.row)) in wanted}

    def fields(self, windows: Ints, names: Sequence[str]) -> dict[str, Ints]:
        """Read some fields of the records of [n] windows: name -> [n, length]."""
        found: dict[str, list[Ints]] = {name: [] for name in names}
        for start in range(0, len(windows), READ_AT_ONCE):
            some = self.stream.read(self.places.rows(windows[start : start + READ_AT_ONCE])).rows(slice(None))
            fields = self.recipe.fields(some, self.vocabulary)
            for name in names:
                found[name].append(fields[name])
        return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def with_all_windows(source: StreamSource, numbers: Ints) -> Ints:
    """Add to some windows of a source those that are of the same rows, in the order of the disk."""
    rows = row_numbers(source)
    return np.flatnonzero(np.isin(rows, rows[numbers]))


def row_numbers(source: StreamSource) -> Ints:
    """[windows] number of the row that each record of a source is of, in the order of the disk."""
    corpus = source.corpus
    assert corpus.labelled is not None
    found = [np.empty(0, np.int64)]
    for region in source.regions:  # each a whole shard
        starts = np.concatenate([[0], corpus.document_ends(region.shard)])[:-1].astype(np.int64)
        found.append(corpus.tokens(region.shard)[starts + len(corpus.labelled.fields)].astype(np.int64))
    return np.concatenate(found)
