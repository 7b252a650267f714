"""The words of many texts at once, as 64-bit hashes: no Python object is made of a word.

In scripts that put no spaces between words (Chinese, Japanese, Thai and others) each character is a word.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.system.random_words import mix64

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

BETWEEN, PART, ALONE = 0, 1, 2
"""A character that separates words, is part of one, or is one."""
UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
BASE = 0x9E3779B97F4A7C17
"""Of the polynomial that hashes a word: 3 modulo 4, so that no difference of two powers has many factors of two."""
PIECE = 1 << 20
"""Characters to hash at a time."""


class Words(NamedTuple):
    """The words of some texts, one text after the other."""

    hashes: Hashes
    """[words]."""
    starts: Ints
    """[words] each one's first character, counted over all texts with one character between two of them."""
    counts: Ints
    """[texts] words of each."""


def words_of(texts: Sequence[str], fold: bool) -> Words:
    """Find and hash the words of texts.

    Args:
        fold: whether case and all but letters, marks and digits make no difference; else words are all that white
            space separates.
    """
    if fold:
        texts = [text.lower() for text in texts]
    whole = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = np.concatenate([[np.uint8(BETWEEN)], _kinds(fold)[whole], [np.uint8(BETWEEN)]])
    here, before = kinds[1:], kinds[:-1]
    begins = (here != BETWEEN) & ((before != PART) | (here == ALONE))  # [characters + 1], the last is never one
    ends = (before != BETWEEN) & ((here != PART) | (before == ALONE))
    starts = np.flatnonzero(begins)
    firsts = [0, *accumulate(len(text) + 1 for text in texts)]
    counts = np.diff(np.searchsorted(starts, firsts))
    return Words(_hashes(whole, starts, np.flatnonzero(ends)), starts, counts)


def _hashes(whole: NDArray[np.uint32], starts: Ints, ends: Ints) -> Hashes:
    """[words] each word's sum of (character + 1)·BASE^place, mixed: from sums over all characters up to a place."""
    hashes = np.empty(len(starts), np.uint64)
    cuts = np.unique(np.searchsorted(starts, np.arange(0, len(whole) + PIECE, PIECE)))
    for first, last in pairwise(cuts):
        begin, end = starts[first], ends[last - 1]
        places = starts[first:last] - begin, ends[first:last] - begin
        sums = np.zeros(end - begin + 1, np.uint64)
        np.cumsum((whole[begin:end] + np.uint64(1)) * _powers(BASE, int(end - begin)), out=sums[1:])
        shift = _powers(pow(BASE, -1, 1 << 64), int(places[0][-1]) + 1)[places[0]]
        hashes[first:last] = (sums[places[1]] - sums[places[0]]) * shift
    return mix64(hashes)


def _powers(base: int, num: int) -> Hashes:
    powers = np.full(num, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)


@cache
def _kinds(fold: bool) -> NDArray[np.uint8]:
    """[characters of Unicode] BETWEEN, PART or ALONE."""
    every = map(chr, range(0x110000))
    if fold:
        kinds = np.fromiter((unicodedata.category(c)[0] in "LMN" for c in every), np.uint8, 0x110000)
    else:
        kinds = np.fromiter((not c.isspace() for c in every), np.uint8, 0x110000)
    for first, last in UNSPACED:
        kinds[first : last + 1] *= ALONE
    return kinds
