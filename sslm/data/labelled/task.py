"""What a task makes of labelled rows: which fields it reads, what an example is, how it lies in a corpus.

An example is one document of a corpus, a record: the length of each of its fields, then the fields, all as uint32. Its
tokens are as the tokenizer itself frames and cuts them for seq_len, so that a batch only has to be padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Tally
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.values import Row

Ints = NDArray[np.int64]
Record = Sequence[Sequence[int]]
"""A record's fields."""


class Column(NamedTuple):
    """A field that a task reads of each row."""

    role: str
    """What the task calls it."""
    flag: str
    """Setting that names it."""
    names: tuple[str, ...]
    """The name that was given, or the usual ones, of which the first that is there is read."""
    is_needed: bool = True


class Missing(Exception):
    """A row that there is nothing to learn from; says why."""


class Example(NamedTuple):
    """A row, read and checked."""

    row: int
    """Number of the row in its table, from 0."""
    where: str
    """Where it stands, for the user."""
    text: Any
    """Text, or a list of words."""
    pair: str | None = None
    labels: tuple[str, ...] = ()
    """Names of its labels: one a word if words are tagged, an empty one for a word that is not."""
    target: Any = None
    """What is to be predicted, if it is no name; None if nobody knows."""
    answers: tuple[str, ...] = ()
    """All texts that are right, of a question; none if it has no answer."""
    group: int | None = None
    """Rows with equal numbers are not parted when some are held out; None: each row is by itself."""


Columns = Literal["input tokens", "target tokens", "classes"]


@dataclass(frozen=True)
class Task:
    """What a task makes of rows. All of its settings decide what the corpus holds."""

    seq_len: int

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    """Names of a record's fields, in order; `row`, the number of the row in its table, is the first."""
    has_names: ClassVar[bool] = True
    """Whether labels are names, which are numbered."""
    cut_in_words: ClassVar[str] = "cut at the end"
    first_names: ClassVar[tuple[str, ...]] = ()
    """Names that get the first numbers, if they occur."""

    is_counted: ClassVar[bool] = True
    """Whether labels, or numbers, are counted, so that a baseline can be told."""

    has_windows: ClassVar[bool] = False
    """Whether a long row becomes several records, windows; else it is cut."""

    labels_have: ClassVar[Columns] = "classes"
    """What labels have columns for: tokens of the input, tokens of a target of their own, or something else."""

    targets_are_places: ClassVar[bool] = False
    """Whether targets are places in a sequence; if they are not counted, they are places or ids of tokens."""

    @property
    def is_one_each(self) -> bool:
        """Whether each row, or each tagged word, has one label; else each label is there or not."""
        return True

    @property
    def least_names(self) -> int:
        """Number of labels below which there is nothing to tell apart."""
        return 2

    def identity(self) -> dict[str, Any]:
        """Record what decides the records."""
        return {"task": self.name, **asdict(self)}

    def to_predict(self) -> "Task":
        """Return the task as it reads rows whose labels may be unknown."""
        return self

    def columns(self, data: DataConfig) -> list[Column]:
        """List the fields to read."""
        raise NotImplementedError

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        """Read a row.

        Args:
            number: the row's number in its table.
            row: values by role.
            data: where the text comes from.
            is_complete: whether rows without a label are read too, to be predicted.

        Raises:
            Missing: there is nothing to learn from it.
            UserError: it can't be read.
        """
        raise NotImplementedError

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        """Make the records of each example, and tell whether some of it was cut off.

        `numbers` are those of the labels, by name.
        """
        raise NotImplementedError

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        """Largest length of each field but the first, `row`."""
        raise NotImplementedError

    def record_len(self, num_labels: int) -> int:
        """Length of the longest record that there can be."""
        return len(self.fields) + 1 + sum(self.capacities(num_labels))

    def tally(self, examples: Sequence[Example], numbers: dict[str, int]) -> Tally:
        """Count labels."""
        counts = [0] * len(numbers)
        for example in examples:
            for name in filter(None, example.labels):
                counts[numbers[name]] += 1
        return Tally(rows=len(examples), counts=tuple(counts))


def packed(records: Sequence[Record]) -> tuple[NDArray[np.uint32], Ints]:
    """Write records one after the other: (numbers, offsets just after each record).

    >>> packed([[[7], [5, 6]]])[0].tolist()
    [1, 2, 7, 5, 6]
    """
    flat: list[int] = []
    ends = []
    for record in records:
        flat.extend(map(len, record))
        for values in record:
            flat.extend(values)
        ends.append(len(flat))
    return np.array(flat, np.uint32), np.array(ends, np.int64)


def unpacked(rows: Ints, fields: Sequence[str]) -> dict[str, tuple[Ints, Ints]]:
    """Find the fields of [n, width] records, one a row: name -> ([n] where it begins, [n] its length)."""
    lengths = rows[:, : len(fields)]
    starts = len(fields) + np.cumsum(lengths, axis=1) - lengths
    return {name: (starts[:, i], lengths[:, i]) for i, name in enumerate(fields)}


def field_of(rows: Ints, place: tuple[Ints, Ints], width: int, fill: int) -> Ints:
    """Read one field of [n, …] records, as `unpacked` found it: [n, width], with `fill` after its end."""
    starts, lengths = place
    within = np.arange(width)
    places = np.minimum(starts[:, None] + within, rows.shape[1] - 1)
    values: Ints = np.where(within < lengths[:, None], np.take_along_axis(rows, places, axis=1), fill)
    return values
