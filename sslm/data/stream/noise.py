"""Randomness as a pure function of (seed, epoch, position): which tokens of an example are masked, and with what.

Counter-based (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): nothing is stored, nothing depends on which
process asks, or on what was drawn before.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.stream.order import key64, mix64
from sslm.data.stream.recipe import Examples

STEP = np.uint64(0x9E3779B97F4A7C15)
PLACE_BITS = np.uint64(20)
"""A row has at most two to this power places."""


def words(examples: Examples, num: int, seed: int, what: str) -> NDArray[np.uint64]:
    """[n, num] random 64-bit words of each example; another `what` gives others."""
    return mix64(_of_rows(examples, seed, what)[:, None] + np.arange(1, num + 1, dtype=np.uint64) * STEP)


def words_at(
    examples: Examples, rows: NDArray[np.int64], columns: NDArray[np.int64], seed: int, what: str
) -> NDArray[np.uint64]:
    """[any] the same at some places only: `words(…)[rows, columns]`."""
    return mix64(_of_rows(examples, seed, what)[rows] + (columns.astype(np.uint64) + np.uint64(1)) * STEP)


def _of_rows(examples: Examples, seed: int, what: str) -> NDArray[np.uint64]:
    rows = mix64(examples.positions.astype(np.uint64) + np.uint64(key64(seed, "noise", what)))
    return mix64(rows + examples.epochs.astype(np.uint64) * STEP)


def uniform(examples: Examples, num: int, seed: int, what: str) -> NDArray[np.float64]:
    """[n, num] numbers from [0, 1)."""
    return (words(examples, num, seed, what) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chosen(keys: NDArray[np.uint64], eligible: NDArray[np.bool_], num: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n, length] of each row `num` of the eligible places, exactly: those with the smallest keys.

    Args:
        keys: [n, length] random words.
        num: [n] at most as many as are eligible.
    """
    keys = _distinct(keys, eligible)
    most = max(int(num.max(initial=1)), 1)
    smallest = np.sort(np.partition(keys, most - 1, axis=1)[:, :most], axis=1)
    last = np.take_along_axis(smallest, np.maximum(num - 1, 0)[:, None], axis=1)
    return eligible & (keys <= last) & (num > 0)[:, None]


def order(keys: NDArray[np.uint64], eligible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[n, length] of each row the eligible places by their keys, then the others."""
    places = (np.uint64(1) << PLACE_BITS) - np.uint64(1)
    return (np.sort(_distinct(keys, eligible), axis=1) & places).astype(np.int64)


def shuffled(groups: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[any] an order of items: by group, which is a number below 2^32, and within each by the keys."""
    return np.argsort((groups.astype(np.uint64) << np.uint64(32)) | (keys >> np.uint64(32)), kind="stable")


def _distinct(keys: NDArray[np.uint64], eligible: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Keys of which no two in a row are alike, as the lowest bits are the place's; of those not eligible the largest."""
    keys = np.where(eligible, keys, ~np.uint64(0)) >> PLACE_BITS << PLACE_BITS
    return keys | np.arange(keys.shape[1], dtype=np.uint64)


def left_aligned(
    values: NDArray[Any], keep: NDArray[np.bool_], width: int, fill: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Of each row the kept values, in order, from its left edge: [n, width] with `fill` after them, and how many, [n].

    >>> left_aligned(np.array([[7, 1, 5]]), np.array([[True, False, True]]), 4, -1)[0].tolist()
    [[7, 5, -1, -1]]
    """
    counts = keep.sum(axis=1)
    assert counts.max(initial=0) <= width
    out = np.full((len(values), width), fill, values.dtype)
    out[np.arange(width) < counts[:, None]] = values[keep]
    return out, counts
