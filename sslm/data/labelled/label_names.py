"""Names of labels: in which order they are numbered, and what is said of one that is not among them."""

from collections.abc import Collection, Iterable

from sslm.data.labelled.task import Example
from sslm.system.errors import UserError, nearest, short

MOST_SHOWN = 12


def in_order(names: Iterable[str], first: Collection[str]) -> list[str]:
    """Sort names: those of `first`, whole numbers by their size, words by the alphabet.

    >>> in_order(["B-X", "10", "9", "O"], first=("O",))
    ['O', '9', '10', 'B-X']
    """
    return sorted(names, key=lambda name: (name not in first, _by_size(name)))


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Group names that differ in case alone.

    >>> alike_names(["good", "Good", "bad"])
    [['good', 'Good']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _by_size(name: str) -> tuple[bool, float, str]:
    """Sort labels: whole numbers by their size, then words."""
    is_number = name.lstrip("-").isdecimal() and name.isascii()
    return not is_number, float(name) if is_number else 0.0, name


def check_names(examples: Iterable[Example], numbers: dict[str, int]) -> None:
    """Raise UserError if an example has a label that is not among those of the training data."""
    for example in examples:
        for name in example.labels:
            if name and name not in numbers:
                alike = next((known for known in numbers if known.casefold() == name.casefold()), name)
                known = ", ".join(map(short, list(numbers)[:MOST_SHOWN])) + (
                    f" … ({len(numbers):,} in all)" if len(numbers) > MOST_SHOWN else ""
                )
                raise UserError(
                    f"{example.where}: the label {short(name)!r} is not among those of the training data"
                    f"{nearest(alike, numbers)}: {known}"
                )
