"""Windows cut into shorter sequences, while a run's sequences are to be short.

A window of causal_lm is one token longer than its sequence, and so is a piece, which shares that token with the next:
every token is predicted once, as in whole windows. Of other objectives, a window is as many tokens as `make_batch`
makes a sequence of; special tokens stand in every piece, so that a few tokens at a window's end are left out, which is
told before the run. Noise and digests go by the number of the piece: position times pieces per window, plus its place.
"""

from typing import NamedTuple

import numpy as np

from sslm.data.stream.recipe import Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary


class Pieces(NamedTuple):
    """How a window is cut."""

    num: int
    length: int
    """Tokens of each."""
    stride: int
    """Tokens from one's beginning to the next's."""

    @property
    def num_read(self) -> int:
        """Tokens of a window that are in a piece."""
        return (self.num - 1) * self.stride + self.length


def pieces_of(recipe: Recipe, vocabulary: Vocabulary | None, window_len: int, seq_len: int, at_most: int) -> Pieces:
    """Cut windows into at most so many pieces, each for a sequence of `seq_len` tokens."""
    length, stride = recipe.window_len(seq_len, vocabulary), recipe.stride(seq_len, vocabulary)
    return Pieces(min((window_len - length) // stride + 1, at_most), length, stride)


def cut(examples: Examples, pieces: Pieces) -> Examples:
    """Cut [n] examples, all of them full, into [n · pieces]: those of a window follow on each other."""
    assert examples.lengths is None
    num, length, stride = pieces
    columns = np.arange(num)[:, None] * stride + np.arange(length)
    documents = examples.documents
    if documents is not None:
        documents = documents[:, columns].reshape(-1, length)
        documents = documents - documents[:, :1]  # numbered from 0 within a row
    return Examples(
        tokens=examples.tokens[:, columns].reshape(-1, length),
        positions=(examples.positions[:, None] * num + np.arange(num)).ravel(),
        epochs=np.repeat(examples.epochs, num),
        sources=np.repeat(examples.sources, num),
        documents=documents,
    )
