"""Measures of a document's lines, or of its paragraphs."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def shares(lines: Sequence[list[str]], is_one: Callable[[str], bool]) -> NDArray[np.float64]:
    """[documents] share of lines that are of a kind; 0 if there are no lines."""
    return np.array([sum(map(is_one, some)) / max(len(some), 1) for some in lines])


def copied(pieces: list[str]) -> tuple[int, int]:
    """Count the pieces that stood before, and their characters."""
    different = set(pieces)
    if len(different) == len(pieces):
        return 0, 0
    return len(pieces) - len(different), sum(map(len, pieces)) - sum(map(len, different))
