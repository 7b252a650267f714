"""The noise of one source: documents first, then words, then tokens, each a pure function of (seed, epoch, position).

A window keeps its length. It is read with some of the text after it, which comes up where noise made it shorter; what
no longer fits where noise made it longer is cut off. Text after a region's end, which may be held out, is never read: a
window that would be too short, as a region's last may be, stays as it is. A packed window has no text after it: it
holds less, or loses what no longer fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslm.config.augment import Augment
from sslm.data.stream.augmentation.documents import cropped, joined
from sslm.data.stream.augmentation.rewriting import cut, documents_of, lengths_of
from sslm.data.stream.augmentation.tokens import scrambled, tokens_needed
from sslm.data.stream.augmentation.words import Spelling, reworded
from sslm.data.stream.recipe import Bools, Examples

SHORTER = 1.5
"""Tokens to read for each that is left of joined documents, or of words in lower case or without marks."""
CROPPED = 2
"""... of cropped documents, at least half of which stays."""


@dataclass(frozen=True)
class Augmenter:
    """Makes noise in examples."""

    augment: Augment
    seed: int
    special: Bools
    """[vocab_size] whether an id is special: it stays, and stays where it is."""
    spelling: Spelling | None
    """Words as text, or None if the corpus is ids without a tokenizer."""

    @property
    def setting(self) -> str:
        """The noise, as a checkpoint keeps it."""
        return self.augment.setting

    def needed(self, window_len: int) -> int:
        """Count the tokens to read for a window."""
        num = self._for_words(window_len)
        return int(num * (CROPPED if self.augment.crop else 1) * (SHORTER if self.augment.join else 1)) + 1

    def _for_words(self, window_len: int) -> int:
        shortens = self.augment.lowercase or self.augment.no_punctuation
        return int(
            tokens_needed(window_len, self.augment) * (SHORTER if shortens else 1 + 0.1 * bool(self.augment.words))
        )

    def __call__(self, examples: Examples, window_len: int) -> Examples:
        """Make noise in [n, any] rows, which have lengths and documents: [n, window_len], some of them shorter."""
        augment, now = self.augment, examples
        if augment.join:
            now = joined(now, augment.join, self._is_special(now), self.seed)
        if augment.crop:
            now = cropped(now, augment.crop, self._is_special(now), self.seed)
        if augment.words:
            assert self.spelling is not None
            now = reworded(cut(now, self._for_words(window_len)), augment.words, self.spelling, self.seed)
        if augment.of_tokens:
            now = cut(now, tokens_needed(window_len, augment))
            now = scrambled(now, augment, self._is_special(now), self.seed)
        return self._as_windows(cut(now, window_len), window_len)

    def _is_special(self, examples: Examples) -> Bools:
        """[n, length] whether a token is special, or may be: of ids without a tokenizer, a document's last."""
        is_special: Bools = self.special[examples.tokens]
        if self.spelling is None:
            is_special |= np.diff(documents_of(examples), axis=1, append=-1) != 0
        return is_special

    def _as_windows(self, examples: Examples, window_len: int) -> Examples:
        """Pad rows to [n, window_len], and number each row's documents from 0."""
        missing = window_len - examples.tokens.shape[1]
        tokens = np.pad(examples.tokens, ((0, 0), (0, missing)))
        documents = np.pad(documents_of(examples), ((0, 0), (0, missing)), constant_values=-1)
        begins = np.zeros(documents.shape, np.int32)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return examples._replace(
            tokens=tokens, documents=np.where(documents >= 0, np.cumsum(begins, axis=1, dtype=np.int32), -1)
        )


def augmented(
    examples: Examples, augmenters: Sequence[Augmenter | None], window_len: int, *, keeps_length: bool
) -> Examples:
    """Make noise in the rows of each source that has any, and cut all to windows.

    Args:
        examples: [n, any] rows, which have documents; lengths if there is anything past a window's end.
        augmenters: each source's, or None.
        window_len: tokens of a window.
        keeps_length: whether all windows are full; those that would not be stay as they are.
    """
    lengths = np.full(len(examples.tokens), window_len) if examples.lengths is None else examples.lengths
    was = cut(examples._replace(lengths=lengths), window_len)
    tokens, documents, lengths = was.tokens.copy(), documents_of(was).astype(np.int32), lengths_of(was).copy()
    for number, augmenter in enumerate(augmenters):
        rows = np.flatnonzero(examples.sources == number)
        if augmenter is None or not len(rows):
            continue
        now = augmenter(examples.rows(rows), window_len)
        stands = lengths_of(now) == window_len if keeps_length else slice(None)
        here = rows[stands]
        tokens[here], documents[here], lengths[here] = (
            column[stands] for column in (now.tokens, documents_of(now), lengths_of(now))
        )
    return was._replace(tokens=tokens, documents=documents, lengths=None if keeps_length else lengths)
