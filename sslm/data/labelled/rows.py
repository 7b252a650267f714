"""A table as a task reads it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sslm.config import DataConfig
from sslm.data.labelled.tables import Table
from sslm.data.labelled.task import Example, Missing, Task
from sslm.system.terminal import plural

TRUTHS = ("label", "target")
"""Roles of what is predicted."""


@dataclass(frozen=True)
class Rows:
    """A table as a task reads it."""

    table: Table
    columns: dict[str, str]
    task: Task
    data: DataConfig
    is_complete: bool = False
    """Whether rows without a label are kept, to be predicted."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why rows were left out in the last reading -> how many."""

    @property
    def record(self) -> list[object]:
        """What decides the examples."""
        return [self.table.record, self.columns, self.is_complete]

    def examples(self) -> Iterator[Example]:
        """Read the examples; UserError if a row can't be read."""
        self.left_out.clear()
        may_lack = TRUTHS if self.is_complete else ()
        for number, row in enumerate(self.table.rows(self.columns, may_lack)):
            try:
                yield self.task.example(number, row, self.data, self.is_complete)
            except Missing as missing:
                self.left_out[str(missing)] += 1

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes as a dataset numbers them, or None if none does."""
        return self.table.class_names.get(self.columns.get("label", ""))


def nothing_in(rows: Rows) -> str:
    """Say that a table has no examples, and why."""
    why = ", ".join(f"{plural(number, 'row', exact=True)} {why}" for why, number in sorted(rows.left_out.items()))
    return f"{rows.table.name}: there are no labelled rows in it" + (f" ({why})" if why else "")


def texts_of(example: Example) -> list[str]:
    """List the texts of an example."""
    text = " ".join(example.text) if isinstance(example.text, list) else example.text
    return [text] if example.pair is None else [text, example.pair]
