"""Denoising: a text is corrupted, and the model writes it as it was.

This is the objective of BART (Lewis et al. 2020, arXiv:1910.13461, section 2.2).

Five noises, in any combination; on a row they act in this order:

    permute_sentences   a share of each document's sentences change places among themselves
    infill              spans of words, their lengths Poisson, each become one mask; a span of length 0 is a mask put in
    token_mask          tokens that infilling left each become a mask
    token_delete        tokens that are still left are taken out
    rotate              a row begins with a token drawn uniformly, and what stood before it follows the last

By default the first two, as BART's large models were trained. With <s> = 0, </s> = 2, mask = 4, padding = 1, seq_len
14, a text whose sentences end with 13, 16 and 20, and words that are tokens but for 14 15, 19 20 and 21 22, 3 of 9
words are hidden, in spans of 0, 1 and 2:

    window           11 12 13 14 15 16 17 18 19 20 21 22
    permuted         17 18 19 20 11 12 13 14 15 16 21 22
    spans              ^            --          --------
    input_ids      0 17  4 18 19 20 11  4 13 14 15  4  2  1
    labels         0 11 12 13 14 15 16 17 18 19 20 21 22  2

Infilling is that of fairseq's `denoising_dataset.py`. ceil(infill · words) words are to be hidden: lengths are drawn
until they sum to that, the last cut short, and the spans of 1 or more begin at distinct words drawn uniformly. If spans
run into each other, only the first's mask remains, and less is hidden. Masks for lengths of 0 are put in last, at
places drawn uniformly. One thing differs: a row never becomes longer than it was, so at most as many masks are put in
as tokens have been taken out. By the default settings none was ever one too many in 100,000 windows of 510 tokens, nor
of 126; with `poisson_lambda` 1, in 1 row of 10 (of 510 tokens).

Special tokens, the ends of documents among them, are never hidden or taken out; neither spans nor sentences go across
them, and of all noises rotation alone moves them. Shares are of a row's words (infill) or its tokens (token_mask,
token_delete), special ones not counted, and rounded up. If documents are kept apart, each is rotated for itself, and
keeps one token at least.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sslm.data.stream import noise
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary
from sslm.objectives.special_tokens import PADDING, Around, documents_of, masked, starts, text_starts, window_between
from sslm.system.errors import UserError
from sslm.training.module import Objective

SHARES = ("token_mask", "token_delete", "infill", "permute_sentences", "rotate")
SMALLEST_LAMBDA, LARGEST_LAMBDA = 0.01, 100.0


@dataclass(frozen=True)
class DenoisingRecipe(Recipe):
    """BART's objective, for models with encoder and decoder."""

    keeps_documents = True

    infill: float = 0.3
    """Share of a row's words that are hidden in spans, each of which becomes one mask."""
    poisson_lambda: float = 3.0
    """Mean length of these spans, in words; some have none."""
    permute_sentences: float = 1.0
    """Share of each document's sentences that are permuted among themselves."""
    token_mask: float = 0.0
    """Share of a row's tokens that each become a mask."""
    token_delete: float = 0.0
    """Share of a row's tokens that are taken out without a trace."""
    rotate: float = 0.0
    """Probability that a row is rotated, to begin with any of its tokens."""

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 <= (share := getattr(self, name)) <= 1:
                expected = f"expected a number from 0, which is off, to 1; type --objective.{name} 0.3"
                raise UserError(f"--objective.{name} {share}: {expected}")
        if self.token_mask + self.token_delete + self.infill > 1:
            raise UserError(
                f"--objective.token_mask {self.token_mask} --objective.token_delete {self.token_delete} "
                f"--objective.infill {self.infill}: expected three shares of a text that sum to at most 1; "
                "type --objective.infill 0 where tokens alone are to be masked or deleted"
            )
        if not SMALLEST_LAMBDA <= self.poisson_lambda <= LARGEST_LAMBDA:
            expected = f"expected a mean length in words from {SMALLEST_LAMBDA:g} to {LARGEST_LAMBDA:g}"
            flag = "--objective.poisson_lambda"
            raise UserError(f"{flag} {self.poisson_lambda}: {expected}; type {flag} 3")

    @property
    def moves_words(self) -> bool:
        return self.infill > 0

    def special_tokens(self, seq_len: int) -> SpecialTokens:
        return SpecialTokens(mask=True, pad=True)

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        assert vocabulary is not None
        return window_between(Around.decoded(vocabulary), seq_len, "denoising")

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        documents = documents_of(examples)
        inputs, input_documents = self._noised(examples, documents, vocabulary, seed)
        if self.rotate:
            inputs = inputs.ravel()[self._rotation(examples, input_documents, seed)]
        original, around = np.where(documents >= 0, examples.tokens, IGNORED), Around.decoded(vocabulary)
        batch = {
            "input_ids": around.wrap(inputs, input_documents, vocabulary.pad),
            "labels": around.wrap(original, documents, IGNORED),
            "segment_ids": around.wrap_documents(input_documents),
            "decoder_segment_ids": around.wrap_documents(documents),
        }
        return masked(batch, examples, always=True)

    def _noised(self, examples: Examples, documents: Ints, vocabulary: Vocabulary, seed: int) -> tuple[Ints, Ints]:
        """[n, length] tokens after all noises but rotation, and their documents, from the left edge."""
        assert vocabulary.mask is not None
        tokens, length = examples.tokens, examples.tokens.shape[1]
        real, special = documents >= 0, vocabulary.special[tokens]
        ordinary = real & ~special
        texts = text_starts(real & special, documents)
        words = vocabulary.word_starts(tokens) | texts
        if self.permute_sentences:  # special tokens stay where they are, and so do `texts`
            sentences = texts | _begins_sentence(tokens, vocabulary)
            words |= sentences
            source = self._sentence_order(examples, texts, sentences, seed)
            tokens, words = tokens.ravel()[source], words.ravel()[source]

        masks, gone = np.zeros_like(ordinary), np.zeros_like(ordinary)
        num_insertions = np.zeros(len(tokens), np.int64)
        if self.infill:
            masks, gone, num_insertions = self._infilled(examples, texts, words, ordinary, seed)
        left = ordinary & ~masks & ~gone
        if self.token_mask:
            num = np.minimum(_share(ordinary, self.token_mask), left.sum(axis=1))
            single = noise.chosen(noise.words(examples, length, seed, "token_mask"), left, num)
            masks, left = masks | single, left & ~single
        if self.token_delete:
            if examples.documents is not None:
                is_last = starts(documents[:, ::-1])[:, ::-1]
                left &= ~is_last  # a document with targets has to have a source
            num = np.minimum(_share(ordinary, self.token_delete), left.sum(axis=1))
            gone = gone | noise.chosen(noise.words(examples, length, seed, "token_delete"), left, num)

        keep = real & ~gone
        inserted, others = _insertions(examples, keep.sum(axis=1), np.minimum(num_insertions, gone.sum(axis=1)), seed)
        noised = np.full_like(tokens, vocabulary.pad)
        noised[others] = np.where(masks, vocabulary.mask, tokens)[keep]
        noised[inserted] = vocabulary.mask
        if examples.documents is None:
            return noised, np.where(inserted | others, 0, PADDING)
        return noised, _documents_around(documents, keep, inserted, others)

    def _sentence_order(self, examples: Examples, texts: Bools, sentences: Bools, seed: int) -> Ints:
        """[n, length] place in the flattened batch from which each token comes."""
        rows, places = np.nonzero(sentences)
        text = np.cumsum(texts)[sentences.ravel()] - 1
        moving = np.arange(len(rows))
        if self.permute_sentences < 1:
            by_chance = noise.shuffled(text, noise.words_at(examples, rows, places, seed, "moving"))
            num = np.bincount(text)
            rank = np.arange(len(text)) - (np.cumsum(num) - num)[text]  # the text's first is 0
            moving = by_chance[rank < np.ceil(num * self.permute_sentences)[text]]
        keys = noise.words_at(examples, rows[moving], places[moving], seed, "sentences")
        order = np.arange(len(rows))
        order[moving] = moving[noise.shuffled(text[moving], keys)]

        places = np.flatnonzero(sentences)
        lengths = np.diff(places, append=texts.size)[order]
        shift = places[order] - (np.cumsum(lengths) - lengths)
        source: Ints = np.repeat(shift, lengths) + np.arange(texts.size)
        return source.reshape(texts.shape)

    def _infilled(
        self, examples: Examples, texts: Bools, words: Bools, ordinary: Bools, seed: int
    ) -> tuple[Bools, Bools, Ints]:
        """[n, length] tokens that become a span's mask, [n, length] those that vanish, and [n] numbers of empty spans.

        `texts` and `words` tell where one begins; no span leaves a text. `ordinary` are the tokens that may be hidden.
        """
        budget = _share(words & ordinary, self.infill)
        lengths, num_empty = self._span_lengths(examples, budget, seed)
        keys = noise.words(examples, words.shape[1], seed, "spans")
        begins = noise.chosen(keys, words & ordinary, (lengths > 0).sum(axis=1))
        rows, places = np.nonzero(begins)
        order = noise.shuffled(rows, noise.words_at(examples, rows, places, seed, "order"))
        length = np.empty(len(rows), np.int64)
        length[order] = lengths[lengths > 0]

        number = (np.cumsum(words) - 1).reshape(words.shape)  # of each token's word, from 0 to the batch's last
        num_words = int(words.sum())
        limits = np.append(number[texts], num_words)
        first = number[begins]
        end = np.minimum(first + length, limits[np.searchsorted(limits, first, side="right")])
        opened, closed = (np.bincount(some, minlength=num_words + 1) for some in (first + 1, end))
        within = np.cumsum(opened - closed) > 0  # a span's words but its first
        hidden = within.copy()
        hidden[first] = True
        masks = begins & ~within[number]
        return masks, hidden[number] & ~masks, num_empty

    def _span_lengths(self, examples: Examples, budget: Ints, seed: int) -> tuple[Ints, Ints]:
        """[n, any] lengths above 0 that sum to each row's budget, then 0; and [n] how many of 0 were drawn among them.

        Of draws from a Poisson distribution those above 0 follow the same without its 0; how many 0 come before each is
        geometric, k or more with probability e^(-lambda k). Hence budget draws of each are always enough.
        """
        most = int(budget.max(initial=0))
        drawn = noise.uniform(examples, most, seed, "lengths")
        lengths = 1 + np.searchsorted(_positive_poisson(self.poisson_lambda), drawn, side="right")
        before = np.cumsum(lengths, axis=1) - lengths
        lengths = np.clip(budget[:, None] - before, 0, lengths)
        empty = (-np.log1p(-noise.uniform(examples, most, seed, "empty")) / self.poisson_lambda).astype(np.int64)
        return lengths, (empty * (lengths > 0)).sum(axis=1)

    def _rotation(self, examples: Examples, documents: Ints, seed: int) -> Ints:
        """[n, length] place in the flattened batch, and in its own document, from which each token comes."""
        begins = starts(documents)
        rows, places = np.nonzero(begins)
        first = rows * documents.shape[1] + places
        size = np.diff(first, append=documents.size)
        drawn = (noise.words_at(examples, rows, places, seed, what) for what in ("rotate", "first token"))
        chance, where = ((words >> np.uint64(11)) * 2.0**-53 for words in drawn)
        offset = np.where(chance < self.rotate, (where * size).astype(np.int64), 0)
        group = np.cumsum(begins) - 1
        within = np.arange(documents.size) - first[group]
        source: Ints = first[group] + (within + offset[group]) % size[group]
        return source.reshape(documents.shape)


@cache
def _positive_poisson(mean: float) -> NDArray[np.float64]:
    """Probabilities that a Poisson variable which is not 0 is at most 1, 2 …"""
    k = np.arange(1, 32 + int(mean + 12 * math.sqrt(mean)))
    log_factorial = np.cumsum(np.log(k))
    probability = np.exp(k * math.log(mean) - log_factorial)
    below: NDArray[np.float64] = np.cumsum(probability / probability.sum())[:-1]
    return below


def _share(places: Bools, share: float) -> Ints:
    """[n] a share of each row's places, rounded up."""
    num: Ints = np.ceil(places.sum(axis=1) * share).astype(np.int64)
    return num


def _begins_sentence(tokens: Ints, vocabulary: Vocabulary) -> Bools:
    """[n, length] where the token before ends a sentence: of several that could in a row the first, as in fairseq."""
    stops = vocabulary.ends_sentence[tokens]
    begins = np.zeros_like(stops)
    begins[:, 1:] = stops[:, :-1]
    begins[:, 2:] &= ~stops[:, :-2]
    return begins


def _insertions(examples: Examples, num_tokens: Ints, num_insertions: Ints, seed: int) -> tuple[Bools, Bools]:
    """[n, length] the places of tokens that are put in, and of those that were there before."""
    length = examples.tokens.shape[1]
    places = np.arange(length) < (num_tokens + num_insertions)[:, None]
    inserted = noise.chosen(noise.words(examples, length, seed, "insertions"), places, num_insertions)
    return inserted, places & ~inserted


def _documents_around(documents: Ints, keep: Bools, inserted: Bools, others: Bools) -> Ints:
    """[n, length] documents of what is kept, and of what is inserted: that of the token after it, if there is one."""
    kept, num_kept = noise.left_aligned(documents, keep, documents.shape[1], PADDING)
    after = np.minimum(np.cumsum(others, axis=1) - others, np.maximum(num_kept - 1, 0)[:, None])
    return np.where(inserted | others, np.maximum(np.take_along_axis(kept, after, axis=1), 0), PADDING)


class Denoising(Objective):
    """BART's objective with any encoder–decoder model of transformers."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_model: ClassVar[dict[str, Any]] = {
        "model_type": "bart",
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 384,
        "decoder_ffn_dim": 384,
        "init_std": 0.08,
    }
    default_lr: ClassVar[float] = 2e-3
    recipe_class = DenoisingRecipe
