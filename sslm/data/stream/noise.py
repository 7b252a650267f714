"""Random numbers as a pure function of (seed, epoch, position), to choose which tokens are masked, and with what.

Counter-based (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): no generator, so no state to restore.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.stream.recipe import Bools, Examples, Ints
from sslm.system.random_words import key64, mix64

STEP = np.uint64(0x9E3779B97F4A7C15)
PLACE_BITS = np.uint64(20)
"""A row has at most 2^PLACE_BITS places."""


def words(examples: Examples, num: int, seed: int, what: str) -> NDArray[np.uint64]:
    """Draw [n, num] random 64-bit words for the examples; `what` names the stream of words."""
    return mix64(_row_keys(examples, seed, what)[:, None] + np.arange(1, num + 1, dtype=np.uint64) * STEP)


def words_at(examples: Examples, rows: Ints, columns: Ints, seed: int, what: str) -> NDArray[np.uint64]:
    """Draw `words(…)[rows, columns]` without the other words."""
    return mix64(_row_keys(examples, seed, what)[rows] + (columns.astype(np.uint64) + np.uint64(1)) * STEP)


def _row_keys(examples: Examples, seed: int, what: str) -> NDArray[np.uint64]:
    rows = mix64(examples.positions.astype(np.uint64) + np.uint64(key64(seed, "noise", what)))
    return mix64(rows + examples.epochs.astype(np.uint64) * STEP)


def uniform(examples: Examples, num: int, seed: int, what: str) -> NDArray[np.float64]:
    """Draw [n, num] numbers from [0, 1)."""
    return as_uniform(words(examples, num, seed, what))


def as_uniform(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn random words into numbers from [0, 1)."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chosen(keys: NDArray[np.uint64], eligible: Bools, num: Ints) -> Bools:
    """Choose the `num` eligible places with the smallest keys of each row: [n, length] whether a place is chosen.

    `keys` and `eligible` are [n, length]; `num` is [n], and at most as many as are eligible.
    """
    keys = _distinct(keys, eligible)
    most = max(int(num.max(initial=1)), 1)
    smallest = np.sort(np.partition(keys, most - 1, axis=1)[:, :most], axis=1)
    last = np.take_along_axis(smallest, np.maximum(num - 1, 0)[:, None], axis=1)
    return eligible & (keys <= last) & (num > 0)[:, None]


def order(keys: NDArray[np.uint64], eligible: Bools) -> Ints:
    """Sort each row's places, [n, length]: the eligible by their keys, then the others."""
    places = (np.uint64(1) << PLACE_BITS) - np.uint64(1)
    return (np.sort(_distinct(keys, eligible), axis=1) & places).astype(np.int64)


def shuffled(groups: Ints, keys: NDArray[np.uint64]) -> Ints:
    """Sort items by group, a number below 2^32, and within a group by the keys: [any] indices."""
    return np.argsort((groups.astype(np.uint64) << np.uint64(32)) | (keys >> np.uint64(32)), kind="stable")


def _distinct(keys: NDArray[np.uint64], eligible: Bools) -> NDArray[np.uint64]:
    """Make a row's keys differ, by the place in their lowest bits; ineligible places get the largest."""
    keys = np.where(eligible, keys, ~np.uint64(0)) >> PLACE_BITS << PLACE_BITS
    return keys | np.arange(keys.shape[1], dtype=np.uint64)


def left_aligned(values: NDArray[Any], keep: Bools, width: int, fill: int) -> tuple[NDArray[Any], Ints]:
    """Move each row's kept values to its left edge: [n, width] with `fill` after them, and [n] how many.

    >>> left_aligned(np.array([[7, 1, 5]]), np.array([[True, False, True]]), 4, -1)[0].tolist()
    [[7, 5, -1, -1]]
    """
    counts = keep.sum(axis=1)
    assert counts.max(initial=0) <= width
    out = np.full((len(values), width), fill, values.dtype)
    out[np.arange(width) < counts[:, None]] = values[keep]
    return out, counts
