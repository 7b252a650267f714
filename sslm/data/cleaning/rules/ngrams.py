"""Runs of words that a document has more than once, of all documents of a block together.

A run of n words is told by the two runs of n − 1 words that it is made of. Only those of which the document has both
more than once can be repeated, so the longer the runs, the fewer places are left to look at. Runs are told apart by
numbers given to them: hashes only leave out places at the start, and only those that no other place has the hash of.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sslm.data.cleaning.rules.words import Bools, Ints, Words

FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Repeated(NamedTuple):
    """The runs of n words that stand more than once in their document."""

    n: int
    places: Ints
    """[repeats] first word of each, ascending."""
    runs: Ints
    """[repeats] number of the run at each place; equal if document and words are."""
    counts: Ints
    """[repeats] how often the document has that run."""


def repeated(words: Words, most: int) -> Iterator[Repeated]:
    """Find repeated runs of 2, 3, … most words.

    Documents times the square of different words has to be below 2^63, as it is in one document of 2^30 words, and in
    2^20 documents of as many words together.
    """
    documents, size = words.documents, max(len(words.vocabulary), 1)
    keys = (documents[:-1] * size + words.ids[:-1]) * size + words.ids[1:]
    places = np.flatnonzero((documents[:-1] == documents[1:]) & _may_repeat(keys))
    keys = keys[places]
    for n in range(2, most + 1):
        found = _more_than_once(n, places, keys)
        yield found
        size = max(len(found.runs), 1)
        follows = found.places[1:] == found.places[:-1] + 1  # the two overlap, so they are of one document
        places = found.places[:-1][follows]
        keys = (found.runs[:-1] * size + found.runs[1:])[follows]


def _may_repeat(keys: Ints) -> Bools:
    """Tell which keys share a bucket of their hash with another key; those alone there are alone in all."""
    bits = len(keys).bit_length() + 2
    buckets = ((keys.view(np.uint64) * FACTOR) >> np.uint64(64 - bits)).view(np.int64)
    is_shared: Bools = np.bincount(buckets, minlength=1 << bits)[buckets] > 1
    return is_shared


def _more_than_once(n: int, places: Ints, keys: Ints) -> Repeated:
    order = np.argsort(keys)
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(keys)])
    counts = np.diff(np.append(begins, len(keys)))
    times, runs = np.empty_like(keys), np.empty_like(keys)
    times[order], runs[order] = np.repeat(counts, counts), np.repeat(np.cumsum(counts > 1) - 1, counts)
    is_repeated = times > 1
    return Repeated(n, places[is_repeated], runs[is_repeated], times[is_repeated])


def most_frequent(words: Words, found: Repeated) -> Ints:
    """[documents] characters that a document's most frequent run covers, spaces included; 0 if it has none.

    Of several runs that are as frequent the first one counts. If no run is repeated, that is the document's first.
    """
    n, ends = found.n, words.ends
    first, times = words.starts[:-1].copy(), np.ones(len(words.starts) - 1, np.int64)
    documents = words.documents[found.places]
    np.maximum.at(times, documents, found.counts)
    is_top = found.counts == times[documents]
    top, at = np.unique(documents[is_top], return_index=True)
    first[top] = found.places[is_top][at]
    has_run = np.diff(words.starts) >= n
    first = np.where(has_run, first, 0)
    last = np.minimum(first + n, len(words.ids))
    return np.where(has_run, (ends[last] - ends[first] + n - 1) * times, 0)


def duplicated(words: Words, found: Repeated) -> Ints:
    """[documents] characters, spaces left out, of runs that stood before in the document, none counted twice.

    From left to right: a run that stood before counts, and the search goes on behind it; any other run is noted.
    """
    covered = np.zeros(len(words.starts) - 1, np.int64)
    seen: set[int] = set()
    counted, free = [], 0
    for place, run in zip(found.places.tolist(), found.runs.tolist(), strict=True):
        if place < free:
            continue
        if run in seen:
            counted.append(place)
            free = place + found.n
        else:
            seen.add(run)
    first = np.array(counted, np.int64)
    np.add.at(covered, words.documents[first], words.ends[first + found.n] - words.ends[first])
    return covered
