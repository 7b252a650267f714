"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998).

A document is the set of its runs of words. For two sets of Jaccard similarity s, the smallest value of a random
permutation is the same with probability s. `rows` such values make a band; documents that agree in any of `bands`
bands are near-duplicates: probability 1 − (1 − s^rows)^bands.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates.settings import Deduplication
from sslm.data.cleaning.duplicates.words import Hashes, Ints, Words
from sslm.data.overlap import FACTOR, hashes_of_runs
from sslm.system.random_words import key64, mix64

NO_WORDS = np.uint64(0)
"""The key of a document without words, which resembles no other."""
SHINGLES = 1 << 17
"""To permute at a time, so that they stay in the processor's cache."""


def band_keys(words: Words, settings: Deduplication) -> Hashes:
    """[bands, texts] the hash of each band's values, or NO_WORDS."""
    shingles, counts = shingles_of(words, settings.shingle_words)
    keys = np.full((settings.bands, len(counts)), NO_WORDS)
    has_some = np.flatnonzero(counts)
    offsets = np.cumsum(counts) - counts
    cuts = np.unique(np.searchsorted(offsets[has_some], np.arange(0, len(shingles) + SHINGLES, SHINGLES)))
    for first, last in pairwise(cuts):
        texts = has_some[first:last]
        begin, end = offsets[texts[0]], offsets[texts[-1]] + counts[texts[-1]]
        keys[:, texts] = _band_keys(shingles[begin:end], offsets[texts] - begin, settings)
    return keys


def _band_keys(shingles: Hashes, offsets: Ints, settings: Deduplication) -> Hashes:
    num = np.arange(settings.bands * settings.rows, dtype=np.uint64)
    factors = mix64(num + np.uint64(key64("minhash factors", settings.seed))) | np.uint64(1)
    terms = mix64(num + np.uint64(key64("minhash terms", settings.seed)))
    keys = np.zeros((settings.bands, len(offsets)), np.uint64)
    permuted = np.empty_like(shingles)
    for number, (factor, term) in enumerate(zip(factors, terms, strict=True)):
        np.multiply(shingles, factor, out=permuted)
        np.add(permuted, term, out=permuted)
        band = keys[number // settings.rows]
        band[:] = mix64(band * FACTOR + np.minimum.reduceat(permuted, offsets))
    return keys


def shingles_of(words: Words, num: int) -> tuple[Hashes, Ints]:
    """Hash each run of `num` words, and the whole of a text that has less; and count each text's."""
    runs, counts, places = runs_of(words, num)
    kept = [(places, runs)]
    firsts = np.cumsum(words.counts) - words.counts
    for fewer in range(1, num):
        starts = firsts[words.counts == fewer]
        kept.append((starts, hashes_of_runs(words.hashes.view(np.int64), fewer)[starts]))
    order = np.argsort(np.concatenate([places for places, _ in kept]), kind="stable")
    return np.concatenate([hashes for _, hashes in kept])[order], np.where(words.counts < num, words.counts > 0, counts)


def runs_of(words: Words, num: int) -> tuple[Hashes, Ints, Ints]:
    """Hash each run of `num` words of one text: hashes [runs], counts [texts], first words [runs]."""
    counts = np.maximum(words.counts - num + 1, 0)
    is_run: NDArray[np.bool_] = np.ones(len(words.hashes), bool)
    ends = np.cumsum(words.counts)
    for back in range(1, num):  # the last words of a text begin none
        is_run[(ends - back)[words.counts >= back]] = False
    places = np.flatnonzero(is_run)
    return hashes_of_runs(words.hashes.view(np.int64), num)[places], counts, places
