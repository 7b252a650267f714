"""Documents cropped and joined.

A crop keeps a run of a document's tokens, as contrastive retrieval's do (Izacard et al. 2022, arXiv:2112.09118); here
the run has half to all of them. A join takes away what ends one document and begins the next, and makes the two one.
The first and the last document of a window may be parts of longer ones: a crop is then of the part.
"""

import numpy as np

from sslm.data.stream import noise
from sslm.data.stream.augmentation.rewriting import documents_of, rewritten
from sslm.data.stream.recipe import Bools, Examples, Ints


def joined(examples: Examples, share: float, is_special: Bools, seed: int) -> Examples:
    """Join this share of documents to the one before.

    `is_special` is [n, length]: of what stands at the edge between joined documents, specials go.
    """
    documents = documents_of(examples)
    of_row, numbers = _numbered(documents)
    joins = noise.uniform(examples, of_row, seed, "augment join") < share
    joins[:, :1] = False
    joins &= np.arange(of_row) <= documents.max(axis=1, initial=0)[:, None]  # rows with more documents decide nothing
    joins_before, joins_after = joins.ravel(), np.append(joins.ravel()[1:], False)
    place = np.arange(documents.shape[1])
    # of each document its specials before the first other token, and after the last
    first, last = _edges(numbers, place, (documents >= 0) & ~is_special)
    gone = is_special & (documents >= 0)
    gone &= (joins_before[numbers] & (place < first[numbers])) | (joins_after[numbers] & (place > last[numbers]))
    merged = np.where(documents >= 0, documents - np.cumsum(joins, axis=1).ravel()[numbers], -1)
    return rewritten(examples._replace(documents=merged.astype(np.int32)), (~gone).astype(np.int64))


def cropped(examples: Examples, share: float, is_special: Bools, seed: int) -> Examples:
    """Crop this share of documents; their special tokens stay."""
    documents = documents_of(examples)
    of_row, numbers = _numbered(documents)
    crops, size, start = (
        noise.uniform(examples, of_row, seed, f"augment crop {what}").ravel() for what in ("which", "size", "start")
    )
    ordinary = (documents >= 0) & ~is_special
    counts = np.bincount(numbers[ordinary], minlength=len(crops))
    kept = np.ceil(counts * (1 + size) / 2).astype(np.int64)
    first = (start * (counts - kept + 1)).astype(np.int64)
    # of each ordinary token, how many stand before it in its document
    rank = np.cumsum(ordinary).reshape(ordinary.shape) - 1 - (np.cumsum(counts) - counts)[numbers]
    inside = (rank >= first[numbers]) & (rank < (first + kept)[numbers])
    stays = ~ordinary | inside | (crops >= share)[numbers]
    return rewritten(examples, stays.astype(np.int64))


def _numbered(documents: Ints) -> tuple[int, Ints]:
    """(Most documents of a row, [n, length] each place's document counted through the batch)."""
    of_row = int(documents.max(initial=0)) + 1
    return of_row, np.arange(len(documents))[:, None] * of_row + np.maximum(documents, 0)


def _edges(numbers: Ints, place: Ints, ordinary: Bools) -> tuple[Ints, Ints]:
    """Of each document the places of its first and its last ordinary token."""
    size = int(numbers.max(initial=0)) + 1
    places = np.broadcast_to(place, numbers.shape)[ordinary]
    first, last = np.full(size, numbers.shape[1]), np.full(size, -1)
    np.minimum.at(first, numbers[ordinary], places)
    np.maximum.at(last, numbers[ordinary], places)
    return first, last
