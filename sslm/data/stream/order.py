"""Order of training, as a pure function: which window of which shard is read when, in which epoch.

Epoch e of a corpus of n windows is its examples number e·n … (e+1)·n − 1, in an order of its own: a keyed permutation that
is computed and never stored (a Feistel network on a rectangle that holds n and few more, walked along its cycle until it
lands below n; Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Nothing here knows of ranks, batches or files.
"""

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6

Indices = NDArray[np.uint64]


def key64(*what: object) -> int:
    """A 64-bit key that depends on all of `what`, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(_joined(what), digest_size=8).digest(), "little")


def _joined(what: tuple[object, ...]) -> bytes:
    return "\0".join(map(str, what)).encode()


def mix64(x: Indices) -> Indices:
    """Scramble 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: Indices, size: int, *key: object) -> Indices:
    """The permutation of 0 … size−1 that `key` names, at the given indices; size is at most 2^62.

    >>> permute(np.arange(8, dtype=np.uint64), 8, "seed", 0).tolist()
    [3, 0, 1, 6, 5, 4, 2, 7]
    """
    num_rows = math.isqrt(max(size - 1, 0)) + 1
    num_columns = -(-size // num_rows)
    round_keys = np.frombuffer(hashlib.blake2b(_joined(key), digest_size=4 * ROUNDS).digest(), "<u4")
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

    Each epoch the shards are put in an order of their own and cut into blocks of `block_shards`; inside a block all windows
    are shuffled. A block of all shards is a global shuffle; smaller ones bound how many shards must be at hand at once.

    Args:
        num_windows: of each shard.
        key: names the order: the seed, and what else tells it from others.
        block_shards: shards per block; None: all of them.
    """

    num_windows: tuple[int, ...]
    key: tuple[object, ...]
    block_shards: int | None = None

    @functools.cached_property
    def epoch_len(self) -> int:
        """Windows in an epoch."""
        return sum(self.num_windows)

    def at(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of examples, counted from the very first -> (epoch, shard, window of that shard), each [len(numbers)].

        An epoch's tail is followed by the next one's head: nothing is dropped. Takes O(log shards) per number.
        """
        epochs, offsets = np.divmod(numbers.astype(np.uint64), np.uint64(self.epoch_len))
        shards, windows = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in _distinct(epochs):
            in_epoch = np.flatnonzero(epochs == epoch)
            order, first, edges = self._epoch(int(epoch))
            blocks = np.searchsorted(edges, offsets[in_epoch], side="right") - 1
            for block in _distinct(blocks):
                here = in_epoch[blocks == block]
                begin, end = edges[block], edges[block + 1]
                shuffled = begin + permute(offsets[here] - begin, int(end - begin), *self.key, int(epoch), int(block))
                places = np.searchsorted(first, shuffled, side="right") - 1
                shards[here], windows[here] = order[places], shuffled - first[places]
        return epochs.astype(np.int64), shards, windows

    def shards_between(self, first: int, last: int) -> list[int]:
        """The shards of the blocks that examples first … last come from, and of the block after, soonest first."""
        shards: dict[int, None] = {}
        number, is_last = first, False
        while not is_last:
            is_last = number > last
            epoch, offset = divmod(number, self.epoch_len)
            order, _, edges = self._epoch(epoch)
            block = int(np.searchsorted(edges, np.uint64(offset), side="right")) - 1
            size = self._block_shards
            shards |= dict.fromkeys(order[block * size : (block + 1) * size].tolist())
            number = epoch * self.epoch_len + int(edges[block + 1])
        return list(shards)

    @property
    def _block_shards(self) -> int:
        return self.block_shards or len(self.num_windows)

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], Indices, Indices]:
        """(shards in this epoch's order, number of each one's first window, and of each block's first, with the end)."""
        return _epoch_tables(self.num_windows, self.key, self._block_shards, epoch)


@functools.lru_cache(maxsize=16)
def _epoch_tables(
    num_windows: tuple[int, ...], key: tuple[object, ...], block_shards: int, epoch: int
) -> tuple[NDArray[np.int64], Indices, Indices]:
    num_shards = len(num_windows)
    order = permute(np.arange(num_shards, dtype=np.uint64), num_shards, *key, epoch, "shards").astype(np.int64)
    ends = np.cumsum(np.asarray(num_windows, np.uint64)[order], dtype=np.uint64)
    first = np.concatenate([np.zeros(1, np.uint64), ends])
    edges = np.append(first[:-1:block_shards], ends[-1])
    return order, first[:-1], edges


def _distinct(values: NDArray[Any]) -> list[Any]:
    """The values there are; nearly always one."""
    return [values[0]] if len(values) and (values == values[0]).all() else list(np.unique(values))
