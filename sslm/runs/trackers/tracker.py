"""What a tracker is, and what of a row it shows how."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Row = dict[str, Any]
"""One object of metrics.jsonl."""

MARKS = ("anomaly", "skipped_positions", "without_targets", "changed")
"""Keys of what happened at a step beside training: an anomaly, examples that are left out, changed settings."""


class Tracker(Protocol):
    """What has a run's rows too; nothing is written before `begin`. Any method may raise."""

    takes_back: bool
    """Whether `begin` removes rows that are not among those it is given."""

    def begin(self, rows: list[Row]) -> None:
        """Have these rows, each once; may be called again when the run goes back."""

    def write(self, row: Row) -> None:
        """Add a row."""

    def send_model(self, folder: Path) -> None:
        """Take the Hugging Face folder that the run has made, if there is a place for models."""

    def close(self, failed: bool = False) -> None:
        """Finish what is being written, and take the run's files; may be called again."""


class Parts(NamedTuple):
    """A row by how it is shown."""

    numbers: dict[str, float]
    texts: dict[str, str]
    samples: list[str]
    marks: dict[str, str]
    """What happened at this step beside training -> that in words."""


def parts_of(row: Row) -> Parts:
    """Sort a row's values by how they are shown; `step` and values that are null are none of them."""
    numbers, texts, marks = {}, {}, {}
    for key, value in row.items():
        if key in MARKS:
            marks[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        elif isinstance(value, int | float) and key != "step":
            numbers[key] = value
        elif isinstance(value, str):
            texts[key] = value
    return Parts(numbers, texts, row.get("samples") or [], marks)


def unsent(rows: Iterable[Row], steps: Iterable[int]) -> Iterator[Row]:
    """Yield the rows that a tracker lacks, which has a row of each of these steps.

    >>> list(unsent([{"step": 4, "lr": 1}, {"step": 4, "val/loss": 2}, {"step": 5}], [4]))
    [{'step': 4, 'val/loss': 2}, {'step': 5}]
    """
    there = Counter(steps)
    for row in rows:
        if there[row["step"]]:
            there[row["step"]] -= 1
        else:
            yield row
