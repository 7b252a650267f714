"""The pure part of an objective: how the corpus' tokens become a batch. The data plane needs no more of an objective."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary

IGNORED = -100
"""Label of a place that is not scored."""

Arrays = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Examples(NamedTuple):
    """What the stream gives for n positions."""

    tokens: NDArray[Any]
    """[n, window_len] ids, int64 when an objective gets them; places past a row's length are 0."""
    positions: NDArray[np.int64]
    """[n] global index of each example."""
    epochs: NDArray[np.int64]
    """[n] how often its source had been read before."""
    sources: NDArray[np.int64]
    """[n] number of its source in the mixture."""
    lengths: NDArray[np.int64] | None = None
    """[n] tokens that count; None: all of every row, and so of every batch of the run."""
    documents: NDArray[np.int32] | None = None
    """[n, window_len] number of each token's document within its row, from 0; −1 past the row's length. None: not asked for."""

    def rows(self, some: slice) -> "Examples":
        """Some of them, their ids widened to int64."""
        tokens, positions, epochs, sources, lengths, documents = self
        return Examples(
            tokens[some].astype(np.int64),
            positions[some],
            epochs[some],
            sources[some],
            None if lengths is None else lengths[some],
            None if documents is None else documents[some],
        )

    @property
    def is_token(self) -> NDArray[np.bool_] | None:
        """[n, window_len] whether a place holds a token of the corpus; None: all do."""
        return None if self.lengths is None else np.arange(self.tokens.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class Recipe:
    """An objective's settings, and the functions of them. Small and picklable: loader processes get it."""

    keeps_documents: ClassVar[bool] = False
    """Whether it says what belongs to which document, so that attention can be kept inside them."""

    def special_tokens(self, seq_len: int) -> SpecialTokens | None:
        """Special tokens without which it can't work; None: it needs no tokenizer, and is given no vocabulary."""
        return None

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Corpus tokens that one example eats."""
        raise NotImplementedError

    def stride(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Corpus tokens from one window's start to the next's."""
        return self.window_len(seq_len, vocabulary)

    def max_scored(self, seq_len: int, vocabulary: Vocabulary | None) -> int | None:
        """At most so many targets in a row, however many places it has: the head works on these alone. None: every place."""
        return None

    def num_positions(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Length of the longest sequence that a model gets, of inputs and targets."""
        return seq_len

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        """[n] examples -> the model's inputs and `labels`, each [n, …].

        Depends on nothing but its arguments; a row on nothing but its own tokens, position and epoch. `labels` are what each
        place's output is to be, IGNORED where nothing is; of a model with encoder and decoder they are the decoder's outputs,
        and its inputs are the same, shifted. Where `documents` are given, attention is to stay inside a document: the batch
        then has `segment_ids` of the input's length, -1 for what is padding (and `decoder_segment_ids` of the labels'). Where
        they are not, and an encoder's rows have padding, it has an `attention_mask`: 1 for a token, 0 for padding.
        """
        raise NotImplementedError
