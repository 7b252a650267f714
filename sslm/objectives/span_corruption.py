"""Span corruption: spans of a text are taken out, and the model writes them (Raffel et al. 2020, T5, arXiv:1910.10683).

Each span's place in the encoder's input is held by a sentinel of its own; the decoder's output is what each sentinel
stands for. With seq_len 10, ratio 0.3 and mean_span 2 (so that 3 of a window's 10 tokens are noise, in 2 spans),
sentinels 99, 98 … and 1 as the end:

    window     11 12 13 14 15 16 17 18 19 20
    noise               14 15             20
    input_ids  11 12 13 99 16 17 18 19 98  1
    labels     99 14 15 98 20  1

How many tokens are noise, and in how many spans, follows from the window's length alone: only where the spans lie, and
how long each is, is random. A window is therefore as long as the one whose input has seq_len tokens: 512 of them, by
T5's settings, are 568 of the corpus, and 114 targets. Text and noise take turns, and text comes first, as in T5's own
`random_spans_noise_mask`; all such ways to lay the spans are equally likely. The ends of documents are tokens like
others.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslm.data.stream import noise
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary
from sslm.system.errors import UserError
from sslm.training.module import Objective

SHORTEST = 3
"""An input's tokens: one of text, one sentinel, the end."""


@dataclass(frozen=True)
class SpanCorruptionRecipe(Recipe):
    """T5's objective, for models with encoder and decoder."""

    ratio: float = 0.15
    """Share of a window's tokens that are noise: taken out of the input, and predicted."""
    mean_span: float = 3.0
    """Mean length of a span of noise, in tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            rule = "the share of tokens that are taken out lies between 0 and 1, both excluded"
            raise UserError(f"--objective.ratio {self.ratio}: {rule}; type --objective.ratio 0.15")
        if not self.mean_span >= 1:
            flag = "--objective.mean_span"
            raise UserError(f"{flag} {self.mean_span}: a span has at least 1 token; type {flag} 3")

    def special_tokens(self, seq_len: int) -> SpecialTokens:
        _, spans = self.num_noise_and_spans(np.array(self.window_len(seq_len, None)))
        return SpecialTokens(pad=True, sentinels=int(spans))

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Longest window whose input has no more than seq_len tokens, one sentinel a span and the end among them.

        It has exactly seq_len, but where noise so outweighs text (ratio about mean_span / (mean_span + 1) and more)
        that each span has one token of text before it: there it may have one less.
        """
        if seq_len < SHORTEST:
            raise UserError(f"--seq_len {seq_len}: span_corruption needs {SHORTEST} or more; type --seq_len 512")
        lengths = range(int(seq_len / (1 - self.ratio)) + 2)  # of longer windows the text alone is too much
        return bisect_right(lengths, seq_len, key=lambda length: self.widths(length)[0]) - 1

    def num_positions(self, seq_len: int, vocabulary: Vocabulary | None = None) -> int:
        return max(seq_len, *self.widths(self.window_len(seq_len, vocabulary)))

    def widths(self, window_len: int) -> tuple[int, int]:
        """Length of the input and of the labels that a window gives, their ends included."""
        num_noise, spans = map(int, self.num_noise_and_spans(np.array(window_len)))
        return window_len - num_noise + spans + 1, num_noise + spans + 1

    def num_noise_and_spans(self, lengths: Ints) -> tuple[Ints, Ints]:
        """Numbers of noise tokens and spans in rows of these lengths; halves are rounded to even, as T5 does.

        There is a token of noise and one of text at least, and none of noise where a row has less than two tokens.
        """
        num_noise = np.minimum(_rounded(lengths * self.ratio), np.maximum(lengths - 1, 0))
        return num_noise, np.minimum(_rounded(num_noise / self.mean_span), np.minimum(num_noise, lengths - num_noise))

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        tokens = examples.tokens
        n, window_len = tokens.shape
        input_len, target_len = self.widths(window_len)
        lengths = np.full(n, window_len) if examples.lengths is None else examples.lengths
        lengths = np.where(lengths > 1, lengths, 0)  # of one token there is nothing to take out: its row is not scored
        _, spans = self.num_noise_and_spans(lengths)

        corrupted = np.arange(window_len) < lengths[:, None]
        is_noise = np.zeros_like(corrupted)
        is_noise[corrupted] = self._noise(examples, lengths, seed)
        numbers = np.arange(spans.max(initial=0))
        sentinels = np.broadcast_to(vocabulary.sentinels[numbers], (n, len(numbers)))[numbers < spans[:, None]]

        real = corrupted if examples.is_token is None else examples.is_token
        inputs, input_counts = _condensed(tokens, is_noise, real, sentinels, input_len, vocabulary.pad)
        labels, label_counts = _condensed(tokens, corrupted ^ is_noise, corrupted, sentinels, target_len, IGNORED)
        inputs[np.arange(n), input_counts] = vocabulary.end
        scored = np.flatnonzero(spans)
        labels[scored, label_counts[scored]] = vocabulary.end
        batch = {"input_ids": inputs, "labels": labels}
        if examples.lengths is not None:
            batch["attention_mask"] = (np.arange(input_len) <= input_counts[:, None]).astype(np.int64)
        return batch

    def _noise(self, examples: Examples, lengths: Ints, seed: int) -> Bools:
        """[sum of lengths] whether each of the rows' first tokens is noise, row after row."""
        window_len = examples.tokens.shape[1]
        keys = noise.words(examples, window_len, seed, "spans")
        most, _ = self.num_noise_and_spans(np.array(window_len))
        num_noise, spans = self.num_noise_and_spans(lengths)
        text_lengths = _random_segments(keys[:, most:], lengths - num_noise, spans)
        noise_lengths = _random_segments(keys[:, :most], num_noise, spans)
        turns = np.arange(2 * len(text_lengths)) % 2 == 1  # text, noise, text, noise …
        return np.repeat(turns, np.stack([text_lengths, noise_lengths], axis=1).ravel())


def _rounded(x: NDArray[np.floating[Any]]) -> Ints:
    """Round to the nearest whole number above 0."""
    rounded: Ints = np.rint(x).astype(np.int64)
    return np.maximum(rounded, 1)


def _random_segments(keys: NDArray[np.uint64], sizes: Ints, num: Ints) -> Ints:
    """[sum of num] lengths of `num` non-empty segments of each row's `sizes` items, all ways being equally likely."""
    places, sizes = np.arange(keys.shape[1]), sizes[:, None]
    ends = noise.chosen(keys, places < sizes - 1, num - 1) | (places == sizes - 1)
    return np.diff(np.flatnonzero(ends[places < sizes]), prepend=-1)


def _condensed(tokens: Ints, gone: Bools, within: Bools, sentinels: Ints, width: int, fill: int) -> tuple[Ints, Ints]:
    """[n, width] tokens `within`, each run of those gone replaced by the next sentinel; and [n] how many they are."""
    first = gone.copy()
    first[:, 1:] &= ~gone[:, :-1]
    tokens = tokens.copy()
    tokens[first] = sentinels
    return noise.left_aligned(tokens, within & (first | ~gone), width, fill)


class SpanCorruption(Objective):
    """T5's objective with any encoder–decoder model of transformers."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_model: ClassVar[dict[str, Any]] = {
        "model_type": "t5",
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 256,
        "num_layers": 3,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }
    default_lr: ClassVar[float] = 4e-3
    recipe_class = SpanCorruptionRecipe
    metric_names = ("accuracy", "span_exact_match")

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Count right tokens, and spans all of whose tokens are right, each predicted from the true ones before it."""
        labels = batch["labels"]
        sentinels = torch.from_numpy(self.trainer.datamodule.vocabulary.sentinels).to(labels.device)
        begins = torch.isin(labels, sentinels)
        span = begins.cumsum(1) - 1  # that a target belongs to; [0, num_spans) but for what stands before the first
        within = (labels != IGNORED) & ~begins & (span >= 0) & (labels != self.trainer.datamodule.vocabulary.end)
        wrong = torch.zeros_like(labels).scatter_add(1, span.clamp(0), (within & (predicted != labels)).long())
        length = torch.zeros_like(labels).scatter_add(1, span.clamp(0), within.long())
        return {**super().correct(batch, predicted), "span_exact_match": (wrong == 0, length > 0)}
