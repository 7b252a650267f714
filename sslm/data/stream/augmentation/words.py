"""Noise in text: the words that get some are decoded, edited, and encoded again; all other tokens stay as they are.

A word is what the tokenizer takes for one (`Vocabulary.word_starts`), with the white space before it. One whose text
does not give its own tokens back (a character cut by a window's edge, a word that is unknown) stays as it is; so does
one that the tokenizer could not write after the edit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, backend_of
from sslm.data.stream import noise
from sslm.data.stream.augmentation.edits import EDITS, Edit
from sslm.data.stream.augmentation.rewriting import documents_of, first_copies, lengths_of, rewritten
from sslm.data.stream.recipe import Bools, Examples, Ints
from sslm.data.stream.vocabulary import Vocabulary

OF_DOCUMENTS = ("lowercase", "uppercase", "no_punctuation", "typography")
"""Noise that all words of a document get, or none."""
KEPT = 1 << 15
"""Words whose texts and tokens are remembered: most of a text is few words."""


class Spelling:
    """Words' tokens as text, and back."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.tokenizer, self.vocabulary, self.vocab_size = tokenizer, vocabulary, vocab_size

    def __getstate__(self) -> dict[str, Any]:
        kept = ("tokenizer", "vocabulary", "vocab_size")
        return {name: self.__dict__[name] for name in kept}  # what is remembered can't be sent to another process

    @functools.cached_property
    def ids(self) -> Callable[[str], tuple[int, ...] | None]:
        """Text -> its tokens, or None if one is special, unknown, or no token of the corpus."""

        @functools.lru_cache(KEPT)
        def ids(text: str) -> tuple[int, ...] | None:
            if (backend := self._backend) is None:
                found = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            else:
                found = backend.encode(text, add_special_tokens=False).ids
            is_text = all(number < self.vocab_size and not self.vocabulary.special[number] for number in found)
            return tuple(found) if is_text else None

        return ids

    @functools.cached_property
    def text(self) -> Callable[[tuple[int, ...]], str | None]:
        """Tokens -> the text that gives them back, or None if none is known."""

        @functools.lru_cache(KEPT)
        def text(word: tuple[int, ...]) -> str | None:
            decoded = str((self._backend or self.tokenizer).decode(list(word), skip_special_tokens=False))
            # some tokenizers put a space before each text
            return next((text for text in (decoded, decoded.removeprefix(" ")) if self.ids(text) == word), None)

        return text

    @functools.cached_property
    def _backend(self) -> Any:
        return backend_of(self.tokenizer, TokenRules())


def reworded(examples: Examples, shares: dict[str, float], spelling: Spelling, seed: int) -> Examples:
    """Make noise in words: shares of `OF_DOCUMENTS` are of documents, the others of words."""
    rows, starts, ends, documents = _words(examples, spelling.vocabulary)
    chosen: list[Bools] = []
    draws: list[NDArray[np.uint64]] = []
    for name, share in shares.items():
        places = documents if name in OF_DOCUMENTS else starts
        what = "case" if name in ("lowercase", "uppercase") else name
        drawn = noise.as_uniform(noise.words_at(examples, rows, places, seed, f"augment {what}"))
        # a document is in one case or the other: of one number, low ones mean the one, high ones the other
        chosen.append(drawn >= 1 - share if name == "uppercase" else drawn < share)
        draws.append(noise.words_at(examples, rows, places, seed, f"augment {what} how"))
    words = np.flatnonzero(np.any(chosen, axis=0))
    plans = [
        Plan(EDITS[name], which[words].tolist(), drawn[words].tolist())
        for name, which, drawn in zip(shares, chosen, draws, strict=True)
    ]
    return _written(examples, (rows[words], starts[words], ends[words]), plans, spelling)


class Plan(NamedTuple):
    """What one edit does to some words."""

    edit: Edit
    gets_it: list[bool]
    """Of each word, whether it is edited."""
    draws: list[int]
    """Of each word, a random number."""


def _words(examples: Examples, vocabulary: Vocabulary) -> tuple[Ints, Ints, Ints, Ints]:
    """Find the batch's words: (row, first place, place after the last, document) of each; special tokens are none."""
    tokens, documents = examples.tokens, documents_of(examples)
    # the next token decides where a word begins: past a row's end stands the same one, whatever is read beside it
    ended = np.pad(np.where(documents < 0, vocabulary.end, tokens), ((0, 0), (0, 1)), constant_values=vocabulary.end)
    begins = vocabulary.word_starts(ended)[:, :-1]
    begins[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    begins &= documents >= 0
    rows, starts = np.nonzero(begins)
    ends = np.append(starts[1:], 0)
    is_last = np.append(rows[1:] != rows[:-1], True)
    ends = np.where(is_last, lengths_of(examples)[rows], ends)
    ordinary = ~vocabulary.special[tokens[rows, starts]]
    return rows[ordinary], starts[ordinary], ends[ordinary], documents[rows, starts][ordinary]


def _written(examples: Examples, where: tuple[Ints, Ints, Ints], plans: list[Plan], spelling: Spelling) -> Examples:
    """Write these words as the edits make them: their (rows, first places, places after the last)."""
    tokens = examples.tokens
    copies = (documents_of(examples) >= 0).astype(np.int64)
    places: list[int] = []
    new: list[tuple[int, ...]] = []
    for number, (row, start, end) in enumerate(zip(*(column.tolist() for column in where), strict=True)):
        if (text := spelling.text(tuple(tokens[row, start:end].tolist()))) is None:
            continue
        edited = text
        for edit, gets_it, draws in plans:
            if gets_it[number]:
                edited = edit(edited, draws[number])
        if edited != text and (ids := spelling.ids(edited)) is not None:
            copies[row, start:end] = 0
            copies[row, start] = len(ids)
            places.append(row * tokens.shape[1] + start)
            new.append(ids)
    sizes = np.array([len(ids) for ids in new], np.int64)
    first = first_copies(copies, np.array(places, np.int64))
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rewritten(
        examples, copies, np.repeat(first, sizes) + within, np.array([n for ids in new for n in ids], np.int64)
    )
