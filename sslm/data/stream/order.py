"""Order of training, as a pure function: which window of which shard is read when, in which epoch.

Epoch e of a corpus of n windows is its examples e·n … (e+1)·n − 1, in a keyed permutation that is computed, never
stored: a Feistel network on a rectangle of n places and few more, applied until it lands below n (Black & Rogaway 2002,
"Ciphers with Arbitrary Finite Domains").
"""

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.system.random_words import joined

ROUNDS = 6

Indices = NDArray[np.uint64]


def permute(indices: Indices, size: int, *key: object) -> Indices:
    """Apply the permutation of 0 … size−1 that `key` names to some indices; size is at most 2^62.

    >>> permute(np.arange(8, dtype=np.uint64), 8, "seed", 0).tolist()
    [3, 0, 1, 6, 5, 4, 2, 7]
    """
    num_rows = math.isqrt(max(size - 1, 0)) + 1
    num_columns = -(-size // num_rows)
    round_keys = np.frombuffer(hashlib.blake2b(joined(key), digest_size=4 * ROUNDS).digest(), "<u4")
    sides = np.uint32(num_rows), np.uint32(num_columns)

    def feistel(x: Indices) -> Indices:
        quotients, remainders = np.divmod(x, np.uint64(num_columns))
        row, column = quotients.astype(np.uint32), remainders.astype(np.uint32)
        for round_key in round_keys.reshape(-1, 2):
            row = (row + _mix32(column + round_key[0]) % sides[0]) % sides[0]
            column = (column + _mix32(row + round_key[1]) % sides[1]) % sides[1]
        return row * np.uint64(num_columns) + column

    result = feistel(indices)
    while len(outside := np.flatnonzero(result >= np.uint64(size))):
        result[outside] = feistel(result[outside])
    return result


def _mix32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scramble 32-bit words in place (the finaliser of MurmurHash3, Appleby 2011)."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


@dataclass(frozen=True)
class Order:
    """The order in which the windows of one corpus are read, epoch after epoch.

    Each epoch shuffles the shards, cuts them into blocks of `block_shards`, and shuffles all windows inside a block.
    A block of all shards, if `block_shards` is None, is a global shuffle; smaller blocks bound how many shards must be
    on the disk at once.
    """

    num_windows: tuple[int, ...]
    """Windows of each shard."""
    key: tuple[object, ...]
    """The order's name: the seed, the source."""
    block_shards: int | None = None

    @functools.cached_property
    def epoch_len(self) -> int:
        """Windows in an epoch."""
        return sum(self.num_windows)

    def at(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find the examples of [n] numbers since the first epoch's start: (epoch, shard, window of that shard)."""
        epochs, offsets = np.divmod(numbers.astype(np.uint64), np.uint64(self.epoch_len))
        shards, windows = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in _distinct(epochs):
            in_epoch = np.flatnonzero(epochs == epoch)
            order, first, edges = _laid_out(self, int(epoch))
            blocks = np.searchsorted(edges, offsets[in_epoch], side="right") - 1
            for block in _distinct(blocks):
                here = in_epoch[blocks == block]
                begin, end = edges[block], edges[block + 1]
                shuffled = begin + permute(offsets[here] - begin, int(end - begin), *self.key, int(epoch), int(block))
                places = np.searchsorted(first, shuffled, side="right") - 1
                shards[here], windows[here] = order[places], shuffled - first[places]
        return epochs.astype(np.int64), shards, windows

    def shards_between(self, first: int, last: int) -> list[int]:
        """List the shards of the blocks of examples first … last and of the block after, soonest first."""
        shards: dict[int, None] = {}
        number, is_last = first, False
        while not is_last:
            is_last = number > last
            epoch, offset = divmod(number, self.epoch_len)
            order, _, edges = _laid_out(self, epoch)
            block = int(np.searchsorted(edges, np.uint64(offset), side="right")) - 1
            size = self.shards_per_block
            shards |= dict.fromkeys(order[block * size : (block + 1) * size].tolist())
            number = epoch * self.epoch_len + int(edges[block + 1])
        return list(shards)

    @property
    def shards_per_block(self) -> int:
        return self.block_shards or len(self.num_windows)


@functools.lru_cache(maxsize=16)
def _laid_out(order: Order, epoch: int) -> tuple[NDArray[np.int64], Indices, Indices]:
    """Lay out an epoch: (shards in order, each shard's first window, each block's first window and the end)."""
    num_shards = len(order.num_windows)
    shards = permute(np.arange(num_shards, dtype=np.uint64), num_shards, *order.key, epoch, "shards").astype(np.int64)
    ends = np.cumsum(np.asarray(order.num_windows, np.uint64)[shards], dtype=np.uint64)
    first = np.concatenate([np.zeros(1, np.uint64), ends])
    return shards, first[:-1], np.append(first[: -1 : order.shards_per_block], ends[-1])


def _distinct(values: NDArray[Any]) -> list[Any]:
    """List the values that occur; nearly always there is one."""
    return [values[0]] if len(values) and (values == values[0]).all() else list(np.unique(values))
