"""The pure part of an objective: how the corpus' tokens become a batch. Data loading needs no more of an objective."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.labelled.task import Task
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary

IGNORED = -100
"""Label of a place that is not scored; where labels are fractional numbers it is NaN."""

Arrays = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def is_target(labels: NDArray[Any]) -> Bools:
    """Whether each of some labels is scored: not IGNORED, or not NaN where they are fractional numbers.

    >>> is_target(np.array([3, -100])).tolist(), is_target(np.array([-2.5, np.nan])).tolist()
    ([True, False], [True, False])
    """
    scored: Bools = ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0
    return scored


def unscored(labels: NDArray[Any], rows: Bools) -> NDArray[Any]:
    """Copy [n, …] labels, with some rows that are not scored."""
    labels = labels.copy()
    labels[rows] = np.nan if labels.dtype.kind == "f" else IGNORED
    return labels


class Examples(NamedTuple):
    """The stream's examples at n positions."""

    tokens: NDArray[Any]
    """[n, window_len] ids, int64 when an objective gets them; places past a row's length are 0."""
    positions: NDArray[np.int64]
    """[n] global index of each example."""
    epochs: NDArray[np.int64]
    """[n] how often each example's source had been read before."""
    sources: NDArray[np.int64]
    """[n] number of each example's source in the mixture."""
    lengths: NDArray[np.int64] | None = None
    """[n] tokens of the corpus in each row, or None if all rows of the run are full."""
    documents: NDArray[np.int32] | None = None
    """[n, window_len] each token's document, numbered from 0 within a row; −1 for padding; None if unwanted."""

    def rows(self, some: slice | Ints) -> "Examples":
        """Take some rows, their ids widened to int64."""
        columns: list[Any] = [None if column is None else column[some] for column in self]
        return Examples(columns[0].astype(np.int64), *columns[1:])

    @property
    def is_token(self) -> NDArray[np.bool_] | None:
        """[n, window_len] whether a place holds a token of the corpus, or None if all do."""
        return None if self.lengths is None else np.arange(self.tokens.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class Recipe:
    """An objective's settings and its pure functions. Small and picklable: loader processes get it."""

    keeps_documents: ClassVar[bool] = False
    """Whether a batch can tell documents apart, so that attention stays inside them."""

    @property
    def predicts_next_token(self) -> bool:
        """Whether a label is the token after its place: transformers' models shift such labels themselves."""
        return False

    def fields(self, examples: Examples, vocabulary: Vocabulary | None) -> dict[str, Ints]:
        """Read the fields of labelled rows' records: name -> [n, largest length], IGNORED after a field's end."""
        raise NotImplementedError

    @property
    def moves_words(self) -> bool:
        """Whether whole words are hidden or moved, which are told apart by white space and marks."""
        return False

    def special_tokens(self, seq_len: int) -> SpecialTokens | None:
        """List the special tokens that the objective needs, or None if it needs no tokenizer and no vocabulary."""
        return None

    def task(self, seq_len: int) -> Task | None:
        """Tell how labelled rows become the examples, or None if these are windows of text."""
        return None

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Count the corpus tokens of one example."""
        raise NotImplementedError

    def stride(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Count the corpus tokens from one window's start to the next's."""
        return self.window_len(seq_len, vocabulary)

    def max_scored(self, seq_len: int, vocabulary: Vocabulary | None) -> int | None:
        """Bound the targets in a row, so that the head works on these alone, or None for every place."""
        return None

    def num_positions(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Find the length of the longest sequence that a model gets, of inputs and targets."""
        return seq_len

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        """Make [n] examples into the model's inputs and `labels`, each [n, …].

        A row depends on nothing but the seed and its own tokens, position and epoch. `labels` are the targets of the
        outputs, or IGNORED; those of an encoder-decoder are its decoder's inputs, shifted. Which labels are targets,
        `is_target` tells. If the examples have `documents`, attention is to stay inside a document: the batch has
        `segment_ids` of the input's length, −1 for padding (and `decoder_segment_ids` of the labels'). If they have
        none, and an encoder's rows have padding, the batch has an `attention_mask`: 1 for a token, 0 for padding.
        """
        raise NotImplementedError
