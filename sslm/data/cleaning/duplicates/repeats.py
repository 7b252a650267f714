"""Which records have a key that others have too."""

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates.partitions import Records

Places = NDArray[np.int64]
NUMBER_BITS = 28
"""A place is document·2^NUMBER_BITS + the number of a line or word in it: `LONGEST_DOCUMENT` is 2^26 characters."""


def repeats(records: Records) -> tuple[Places, Places]:
    """Find the places of records whose key stands at an earlier place too, and that earliest place.

    Args:
        records: in the order of their places.
    """
    places, is_first = _grouped(records)
    firsts = places[is_first][np.cumsum(is_first) - 1]
    return places[~is_first], firsts[~is_first]


def repeated_lines(records: Records, most_documents: int) -> Places:
    """Find the places of lines that stand in more than so many documents, but for those in the first of them."""
    places, is_first = _grouped(records)
    documents, group = places >> NUMBER_BITS, np.cumsum(is_first) - 1
    is_new = is_first | (np.diff(documents, prepend=-1) != 0)
    num_documents = np.bincount(group, weights=is_new).astype(np.int64)
    goes: NDArray[np.bool_] = (num_documents[group] > most_documents) & (documents != documents[is_first][group])
    return places[goes]


def repeated_passages(records: Records, length: int) -> Places:
    """Find the places of passages that stand earlier too, and don't overlap with that first one."""
    places, firsts = repeats(records)
    goes: NDArray[np.bool_] = (places >> NUMBER_BITS != firsts >> NUMBER_BITS) | (places - firsts >= length)
    return places[goes]


def _grouped(records: Records) -> tuple[Places, NDArray[np.bool_]]:
    """Sort places by key, then as they come; and tell whether each is the first of its key."""
    order = np.argsort(records[:, 1], kind="stable")
    places: Places = records[order, 0].view(np.int64)
    is_first = np.zeros(len(order), bool)
    is_first[:1] = True
    for column in records.T[1:]:
        keys = column[order]
        is_first[1:] |= keys[1:] != keys[:-1]
    return places, is_first


def unite(kept_as: Places, some: Places, others: Places) -> None:
    """Join the clusters of pairs of documents, in place: union-find (Shiloach and Vishkin 1982), all pairs at once.

    Args:
        kept_as: [documents] the smallest document of each one's cluster.
    """
    while True:
        a, b = kept_as[some], kept_as[others]
        is_apart = a != b
        if not is_apart.any():
            return
        some, others, a, b = (each[is_apart] for each in (some, others, a, b))
        np.minimum.at(kept_as, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(above := kept_as[kept_as], kept_as):
            kept_as[:] = above
