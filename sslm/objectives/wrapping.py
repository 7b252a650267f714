"""A row of tokens as a model gets it: between what the tokenizer puts around a text ([CLS], [SEP], </s>), padding behind."""

import numpy as np
from numpy.typing import NDArray

from sslm.data.stream.recipe import Examples
from sslm.data.stream.vocabulary import Vocabulary

Ints = NDArray[np.int64]

PADDING = -1
"""Document number of what belongs to none."""


def documents_of(examples: Examples) -> Ints:
    """[n, length] number of each token's document, or of its row's only one; PADDING past the row's length."""
    if examples.documents is not None:
        return examples.documents.astype(np.int64)
    documents = np.zeros(examples.tokens.shape, np.int64)
    return documents if examples.is_token is None else np.where(examples.is_token, documents, PADDING)


def prefix_and_suffix(vocabulary: Vocabulary, with_end: bool) -> tuple[Ints, Ints]:
    """What stands before and after each row; where a decoder writes it, an end at least."""
    ends = with_end and not len(vocabulary.suffix)
    return vocabulary.prefix, np.array([vocabulary.end]) if ends else vocabulary.suffix


def wrapped(values: Ints, documents: Ints, before: Ints, after: Ints, fill: int) -> Ints:
    """Each row's values, which are `fill` where they have no document, between what stands around: each [any], or [n, any].

    >>> wrapped(np.array([[7, 8, 0]]), np.array([[0, 0, -1]]), np.array([2]), np.array([3]), fill=0).tolist()
    [[2, 7, 8, 3, 0]]
    """
    (n, length), start = values.shape, before.shape[-1]
    out = np.full((n, start + length + after.shape[-1]), fill)
    out[:, :start] = before
    out[:, start : start + length] = values
    end = start + (documents >= 0).sum(axis=1)[:, None]
    np.put_along_axis(out, end + np.arange(after.shape[-1]), after, axis=1)
    return out


def wrapped_documents(documents: Ints, before: Ints, after: Ints) -> Ints:
    """What stands before a row belongs to its first document, what stands after it to its last; 0 where it has none."""
    last = np.maximum((documents >= 0).sum(axis=1) - 1, 0)[:, None]
    of_first, of_last = (
        np.maximum(some, 0) for some in (documents[:, :1], np.take_along_axis(documents, last, axis=1))
    )
    return wrapped(documents, documents, of_first.repeat(len(before), 1), of_last.repeat(len(after), 1), PADDING)
