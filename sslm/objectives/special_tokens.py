"""A row of tokens as a model gets it: special tokens before and after it ([CLS], [SEP], </s>), then padding."""

from typing import NamedTuple

import numpy as np

from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints
from sslm.data.stream.vocabulary import Vocabulary
from sslm.system.errors import UserError

PADDING = -1
"""Document number of what belongs to none."""


class Around(NamedTuple):
    """What stands around each row; each [any] tokens, or [n, any] if rows differ."""

    before: Ints
    after: Ints

    @classmethod
    def encoded(cls, vocabulary: Vocabulary) -> "Around":
        """What the tokenizer puts around a text."""
        return cls(vocabulary.prefix, vocabulary.suffix)

    @classmethod
    def decoded(cls, vocabulary: Vocabulary) -> "Around":
        """The same, with an end at least, for rows that a decoder writes."""
        return cls(vocabulary.prefix, vocabulary.suffix if len(vocabulary.suffix) else np.array([vocabulary.end]))

    @property
    def num_tokens(self) -> int:
        """How many they are, if all rows have the same."""
        return len(self.before) + len(self.after)

    def unscored(self) -> "Around":
        """Labels of these tokens where none is predicted."""
        return Around(np.full_like(self.before, IGNORED), np.full_like(self.after, IGNORED))

    def wrap(self, values: Ints, documents: Ints, fill: int) -> Ints:
        """Put the tokens around each row, whose values are `fill` where they have no document.

        >>> Around(np.array([2]), np.array([3])).wrap(np.array([[7, 8, 0]]), np.array([[0, 0, -1]]), fill=0).tolist()
        [[2, 7, 8, 3, 0]]
        """
        n, length = values.shape
        start, num_after = self.before.shape[-1], self.after.shape[-1]
        out = np.full((n, start + length + num_after), fill)
        out[:, :start] = self.before
        out[:, start : start + length] = values
        end = start + (documents >= 0).sum(axis=1)[:, None]
        np.put_along_axis(out, end + np.arange(num_after), self.after, axis=1)
        return out

    def wrap_documents(self, documents: Ints) -> Ints:
        """Number what stands before a row like its first document, what stands after like its last, or 0 if none."""
        last = np.maximum((documents >= 0).sum(axis=1) - 1, 0)[:, None]
        before, after = np.maximum(documents[:, :1], 0), np.maximum(np.take_along_axis(documents, last, axis=1), 0)
        around = Around(before.repeat(len(self.before), 1), after.repeat(len(self.after), 1))
        return around.wrap(documents, documents, PADDING)


def window_between(around: Around, seq_len: int, objective: str) -> int:
    """Longest window that fits into seq_len tokens with what stands around it.

    Raises:
        UserError: it would have less than two tokens.
    """
    length = seq_len - around.num_tokens
    if length < 2:
        needs = "needs room for two tokens besides the tokenizer's own"
        raise UserError(f"--seq_len {seq_len}: {objective} {needs}; type --seq_len 512")
    return length


def documents_of(examples: Examples) -> Ints:
    """[n, length] number of each token's document, or 0 if a row is one text; PADDING past the row's length."""
    if examples.documents is not None:
        return examples.documents.astype(np.int64)
    documents = np.zeros(examples.tokens.shape, np.int64)
    return documents if examples.is_token is None else np.where(examples.is_token, documents, PADDING)


def masked(batch: Arrays, examples: Examples, *, always: bool = False) -> Arrays:
    """Replace a batch's segment ids by an attention mask, unless documents are to be kept apart.

    Args:
        batch: has `segment_ids`.
        examples: what the batch was made of.
        always: make the mask even if no row of the corpus is padded.
    """
    if examples.documents is not None:
        return batch
    batch.pop("decoder_segment_ids", None)
    segments = batch.pop("segment_ids")
    if always or examples.lengths is not None:
        batch["attention_mask"] = (segments >= 0).astype(np.int64)
    return batch


def starts(values: Ints) -> Bools:
    """[n, length] where a value differs from the one before it; a row's first place always."""
    changes = np.ones(values.shape, bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=changes[:, 1:])
    return changes


def text_starts(stays: Bools, documents: Ints) -> Bools:
    """[n, length] where a text begins that neither sentences nor spans leave; a token that stays is one by itself."""
    texts = starts(documents) | stays
    texts[:, 1:] |= stays[:, :-1]
    return texts
