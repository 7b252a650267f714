"""Masked language modelling: restore what was hidden (Devlin et al. 2018, BERT, arXiv:1810.04805).

Exactly k = round(ratio · tokens) tokens of each row are chosen, at least one; by default 15 %. A chosen token is
replaced by the mask 8 times in 10, by a random token of the vocabulary once, and once it stays. With seq_len 7, [CLS] =
2, [SEP] = 3, mask = 4, and `--objective.ratio 0.4`:

    window                7    9    5    8    6
    chosen                     x              x
    input_ids        2    7    4    5    8    6    3
    labels        -100 -100    9 -100 -100    6 -100

Chosen are tokens; or `--objective.unit`

    word     whole words, as the tokenizer tells them apart (whole-word masking of BERT's later releases)
    ngram    runs of 1 to 3 words, n with probability 1/n (Lan et al. 2019, ALBERT, arXiv:1909.11942, eq. 1)
    span     runs of words, their number geometric with p = 0.2, at most 10, replaced alike as a whole (Joshi et al.
             2019, SpanBERT, arXiv:1907.10529, section 3.1)

until exactly k tokens are chosen. The last run of words is cut if it would be too long; a word that would be is passed
over, as in BERT, and words of one token fill the gap (k is missed if there are none). The text's own special tokens
(the ends of documents) are never chosen, and no unit goes across them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from sslm.data.stream import noise
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary
from sslm.objectives.special_tokens import Around, documents_of, masked, starts, window_between
from sslm.system.errors import UserError
from sslm.training.module import Objective

UNITS = ("token", "word", "ngram", "span")
LONGEST = {"ngram": 3, "span": 10}
"""Largest number of words in a run."""
GEOMETRIC = 0.2
"""SpanBERT's p: a span has n words with probability p (1 − p)^(n − 1), up to the longest, scaled to sum to one."""


@dataclass(frozen=True)
class MaskedLMRecipe(Recipe):
    """BERT's objective, for encoders."""

    keeps_documents = True

    ratio: float = 0.15
    """Share of a row's tokens that are chosen (ModernBERT: 0.3)."""
    unit: Literal["token", "word", "ngram", "span"] = "token"
    """What is chosen: token, word, ngram or span."""
    masked: float = 0.8
    """Share of the chosen that become the mask."""
    random: float = 0.1
    """Share of the chosen that become another token; the rest stays."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"--objective.ratio {self.ratio}: expected a share between 0 and 1, such as 0.15")
        if self.unit not in UNITS:
            raise UserError(f"--objective.unit {self.unit}: expected one of {', '.join(UNITS)}")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            flags = f"--objective.masked {self.masked} --objective.random {self.random}"
            raise UserError(f"{flags}: expected two shares that sum to at most 1, such as 0.8 and 0.1")

    @property
    def moves_words(self) -> bool:
        return self.unit != "token"

    def special_tokens(self, seq_len: int) -> SpecialTokens:
        return SpecialTokens(mask=True, pad=True)

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        assert vocabulary is not None
        return window_between(Around.encoded(vocabulary), seq_len, "masked_lm")

    def max_scored(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return int(self._num_chosen(np.array(self.window_len(seq_len, vocabulary))))

    def _num_chosen(self, eligible: Ints) -> Ints:
        num: Ints = np.minimum(np.maximum(np.rint(self.ratio * eligible).astype(np.int64), 1), eligible)
        return num

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        tokens, is_token = examples.tokens, examples.is_token
        eligible = ~vocabulary.special[tokens]
        if is_token is not None:
            eligible &= is_token
        units = None if self.unit == "token" else self._units(examples, vocabulary, seed)
        chosen = self._chosen(examples, eligible, units, seed)
        labels = np.where(chosen, tokens, IGNORED)
        inputs = self._replaced(examples, chosen, units, vocabulary, seed)
        documents, around = documents_of(examples), Around.encoded(vocabulary)
        batch = {
            "input_ids": around.wrap(np.where(documents >= 0, inputs, vocabulary.pad), documents, vocabulary.pad),
            "labels": around.unscored().wrap(labels, documents, IGNORED),
            "segment_ids": around.wrap_documents(documents),
        }
        return masked(batch, examples)

    def _units(self, examples: Examples, vocabulary: Vocabulary, seed: int) -> Ints:
        """[n, length] number of each token's unit in its row, from 0: words, or runs of them as long as is drawn."""
        tokens = examples.tokens
        begins = vocabulary.word_starts(tokens)
        if examples.documents is not None:
            begins |= starts(documents_of(examples))
        if self.unit != "word":
            begins = self._runs(examples, begins, vocabulary.special[tokens], seed)
        return np.cumsum(begins, axis=1) - 1

    def _runs(self, examples: Examples, words: Bools, special: Bools, seed: int) -> Bools:
        """[n, length] where a run of words begins; a special token is a run by itself."""
        (n, width), longest = words.shape, LONGEST[self.unit]
        k = np.arange(1, longest + 1)
        share = 1 / k if self.unit == "ngram" else (1 - GEOMETRIC) ** (k - 1)
        drawn = noise.uniform(examples, width, seed, "lengths")
        edges = np.cumsum(share / share.sum())[:-1]
        lengths = sum((drawn >= edge for edge in edges), np.ones(drawn.shape, np.int64))
        row = np.arange(n)[:, None] * (width + 1)
        begins = np.zeros(n * (width + 1), bool)  # by the number of a word in its row
        begins[row] = True
        begins[row + np.minimum(np.cumsum(lengths, axis=1), width)] = True
        apart = special.copy()
        apart[:, 1:] |= special[:, :-1]
        runs: Bools = words & (begins[row + np.cumsum(words, axis=1) - 1] | apart)
        return runs

    def _chosen(self, examples: Examples, eligible: Bools, units: Ints | None, seed: int) -> Bools:
        num = self._num_chosen(eligible.sum(axis=1))
        length = eligible.shape[1]
        if units is None:
            return noise.chosen(noise.words(examples, length, seed, "chosen"), eligible, num)
        n, most = len(units), int(units.max(initial=0)) + 1
        row = np.arange(n)[:, None] * most
        units = row + units  # counted through the batch
        sizes = np.bincount(units[eligible], minlength=n * most)
        keys = noise.words(examples, most, seed, "chosen")
        order = row + noise.order(keys, sizes.reshape(n, most) > 0)
        ordered = sizes[order]
        before = np.cumsum(ordered, axis=1) - ordered
        room = num[:, None] - before  # left when a unit's turn comes
        fits = (ordered <= room) & (ordered > 0)
        if self.unit == "word":  # none is cut: single tokens stand in
            left = num - (ordered * fits).sum(axis=1)
            single = (ordered == 1) & ~fits
            fits |= single & (np.cumsum(single, axis=1) <= left[:, None])
            room = ordered * fits
        taken = np.empty_like(sizes)
        taken[order] = np.clip(room, 0, ordered)
        # of a unit its first tokens, as many as are taken: all, but of the one that was cut
        place = np.arange(length) - np.maximum.accumulate(np.where(starts(units), np.arange(length), 0), axis=1)
        return eligible & (place < taken[units])

    def _replaced(
        self, examples: Examples, chosen: Bools, units: Ints | None, vocabulary: Vocabulary, seed: int
    ) -> Ints:
        """The input: chosen tokens become the mask, another token, or stay; a span's do alike."""
        rows, places = np.nonzero(chosen)
        drawn = noise.words_at(examples, rows, places, seed, "token")
        what = drawn
        if self.unit == "span" and units is not None:
            what = noise.words_at(examples, rows, units[rows, places], seed, "span")
        what = what >> np.uint64(32)  # one half says what becomes of it, the other which token it becomes
        shares = self.masked, self.masked + self.random
        mask_below, random_below = (np.uint64(round(share * 2**32)) for share in shares)
        ordinary = vocabulary.ordinary
        random = ordinary[((drawn & np.uint64(2**32 - 1)) * np.uint64(len(ordinary))) >> np.uint64(32)]
        inputs = examples.tokens.copy()
        stays = inputs[rows, places]
        inputs[rows, places] = np.select([what < mask_below, what < random_below], [vocabulary.mask, random], stays)
        return inputs


class MaskedLM(Objective):
    """BERT's objective with any encoder of transformers."""

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    default_model: ClassVar[dict[str, Any]] = {
        "model_type": "modernbert",
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "initializer_range": 0.08,
    }
    default_lr: ClassVar[float] = 2e-3
    recipe_class = MaskedLMRecipe

    def loss_metrics(self, loss: Tensor, data: Any) -> dict[str, Tensor]:
        """Pseudo-perplexity of the masked tokens given all the others (Salazar et al. 2020, arXiv:1910.14659).

        All of a row's chosen tokens are masked at once, as RoBERTa reports it.
        """
        return {"pseudo_perplexity": loss.exp()}
