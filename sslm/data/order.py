"""Order of training, as a pure function: which window stands at which position, in which epoch.

`position` is the global index of an example. Epoch e holds positions e·n … (e+1)·n − 1 of a corpus of n windows, in an
order of its own: a keyed permutation that is computed and never stored (a Feistel network on the next power of four,
walked along its cycle until it lands below n; Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
Nothing here knows of ranks, batches or files.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6

Indices = NDArray[np.uint64]


def key64(*what: object) -> int:
    """A 64-bit key that depends on all of `what`, equal on every machine."""
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, what)).encode(), digest_size=8).digest(), "little")


def mix64(x: Indices) -> Indices:
    """Scramble 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: Indices, size: int, *key: object) -> Indices:
    """The permutation of 0 … size−1 that `key` names, at the given indices.

    >>> permute(np.arange(8, dtype=np.uint64), 8, "seed", 0).tolist()
    [0, 6, 1, 4, 2, 3, 7, 5]
    """
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = [np.uint64(key64(*key, number)) for number in range(ROUNDS)]

    def feistel(x: Indices) -> Indices:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix64(right + round_key) & mask)
        return (left << half) | right

    result = feistel(indices.astype(np.uint64))
    while (outside := result >= np.uint64(size)).any():
        result[outside] = feistel(result[outside])
    return result


def window_at(positions: Indices, num_windows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions -> (epoch, window), each [len(positions)]."""
    epochs, offsets = np.divmod(positions.astype(np.uint64), np.uint64(num_windows))
    windows = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        windows[here] = permute(offsets[here], num_windows, seed, "epoch", int(epoch))
    return epochs.astype(np.int64), windows.astype(np.int64)
