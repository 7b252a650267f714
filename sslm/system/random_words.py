"""Random 64-bit words as functions of what they are for: no generator, so no state to keep (Salmon et al. 2011)."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def key64(*parts: object) -> int:
    """Hash all parts to a 64-bit key, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(joined(parts), digest_size=8).digest(), "little")


def joined(parts: tuple[object, ...]) -> bytes:
    """Write all parts as one key to hash."""
    return "\0".join(map(str, parts)).encode()


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
