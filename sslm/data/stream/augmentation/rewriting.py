"""Rows of tokens rewritten at once: each place is written so many times, and some of what is written is replaced."""

import numpy as np

from sslm.data.stream.recipe import Bools, Examples, Ints


def lengths_of(examples: Examples) -> Ints:
    """[n] tokens of each row."""
    assert examples.lengths is not None
    return examples.lengths


def documents_of(examples: Examples) -> Ints:
    """[n, length] document of each place, numbered from 0 within a row; −1 past a row's end."""
    assert examples.documents is not None
    return examples.documents.astype(np.int64)


def cut(examples: Examples, length: int) -> Examples:
    """Cut rows to at most so many tokens."""
    return examples._replace(
        tokens=examples.tokens[:, :length],
        lengths=np.minimum(lengths_of(examples), length),
        documents=documents_of(examples)[:, :length].astype(np.int32),
    )


def rewritten(examples: Examples, copies: Ints, where: Ints | None = None, ids: Ints | None = None) -> Examples:
    """Write each place of [n, length] rows `copies` times, 0 for none; then `ids` where the copies stand.

    `where` counts copies through the batch, as `first_copies` does. Documents are those of the places.

    >>> zero = np.zeros(1, np.int64)
    >>> row = Examples(np.array([[7, 8, 9]]), zero, zero, zero, np.array([3]), np.array([[0, 0, 1]], np.int32))
    >>> now = rewritten(row, np.array([[0, 2, 1]]), np.array([1]), np.array([5]))
    >>> now.tokens.tolist(), now.documents.tolist(), now.lengths.tolist()
    ([[8, 5, 9]], [[0, 0, 1]], [3])
    """
    copies = np.where(_is_token(examples), copies, 0)
    lengths = copies.sum(axis=1)
    tokens = np.repeat(examples.tokens.ravel(), copies.ravel())
    if where is not None:
        tokens[where] = ids
    is_token = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    rows, documents = np.zeros(is_token.shape, np.int64), np.full(is_token.shape, -1, np.int32)
    rows[is_token] = tokens
    documents[is_token] = np.repeat(documents_of(examples).ravel(), copies.ravel())
    return examples._replace(tokens=rows, lengths=lengths, documents=documents)


def first_copies(copies: Ints, places: Ints) -> Ints:
    """Where the copies of some places begin, all counted through the batch; copies past rows' ends must be 0."""
    flat = copies.ravel()
    found: Ints = (np.cumsum(flat) - flat)[places]
    return found


def _is_token(examples: Examples) -> Bools:
    is_token: Bools = np.arange(examples.tokens.shape[1]) < lengths_of(examples)[:, None]
    return is_token
