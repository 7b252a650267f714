"""What a corpus of labelled examples says of its labels: a part of index.json.

Each document of such a corpus is a record: the lengths of its fields, then the fields (docs/formats.md, "Labelled
corpora").
"""

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sslm.system.errors import short
from sslm.system.files import is_size

MOST_LABELS = 1 << 20


@dataclass(frozen=True)
class Tally:
    """What is counted of one part of the examples, to be trained on or held out."""

    rows: int = 0
    """Rows of the files; a question of several windows is one."""
    counts: tuple[int, ...] = ()
    """How often each label stands there: in rows, or in words that are tagged."""
    targets: int = 0
    """Numbers to predict."""
    total: float = 0.0
    """Sum of these numbers."""
    squares: float = 0.0
    """Sum of their squares."""

    def plus(self, other: "Tally") -> "Tally":
        """Add up two parts with the same labels."""
        longer = max(len(self.counts), len(other.counts))
        pairs = zip(*((*tally.counts, *[0] * (longer - len(tally.counts))) for tally in (self, other)), strict=True)
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("rows", "targets", "total", "squares")}
        return Tally(counts=tuple(a + b for a, b in pairs), **sums)


@dataclass(frozen=True)
class Labelled:
    """What a labelled corpus holds."""

    task: str
    fields: tuple[str, ...]
    """Names of a record's fields, in order."""
    names: tuple[str, ...] = ()
    """Names of the labels, by their numbers; none if what is predicted is a number or a text."""
    train: Tally = Tally()
    val: Tally = Tally()
    left_out: dict[str, int] = field(default_factory=dict)
    """Why rows were left out -> how many."""
    num_cut: int = 0
    """Rows that were too long for seq_len."""


def parse_labelled(tree: Any) -> Labelled | None:
    """Read the part of an index that may come from anywhere; None if the corpus is of text.

    Raises:
        ValueError: it can't be what sslm wrote.
        TypeError: likewise.
    """
    if tree is None:
        return None
    parts = {name: Tally(**{**tree[name], "counts": tuple(tree[name]["counts"])}) for name in ("train", "val")}
    lists = {name: tuple(tree[name]) for name in ("fields", "names")}
    found = Labelled(**{**tree, **parts, **lists})
    if not all(isinstance(name, str) for name in (found.task, *found.fields, *found.names)):
        raise ValueError("names that are no text")
    if not 0 < len(found.fields) <= 16 or len(found.names) > MOST_LABELS:
        raise ValueError(f"{len(found.fields)} fields and {len(found.names)} labels")
    sizes = [*found.left_out.values(), found.num_cut]
    for tally in (found.train, found.val):
        sizes += [tally.rows, tally.targets, *tally.counts]
        if not all(isinstance(number, int | float) for number in (tally.total, tally.squares)):
            raise ValueError(f"sums {short([tally.total, tally.squares])}")
    if wrong := [size for size in sizes if not is_size(size)]:
        raise ValueError(f"a count of {short(wrong[0])}")
    return found


def to_tree(labelled: Labelled) -> dict[str, Any]:
    """Turn it into what index.json holds."""
    return asdict(labelled)


def combined(parts: Iterable[Labelled], which: Literal["train", "val"]) -> Tally:
    """Add up what several corpora hold to train on (`train`) or held out (`val`)."""
    return functools.reduce(Tally.plus, (part.train if which == "train" else part.val for part in parts), Tally())
