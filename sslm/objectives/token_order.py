"""Token order: some tokens have changed places, and the model restores the original token at each.

StructBERT (Wang et al. 2019, arXiv:1908.04577) shuffles three neighbours, PERT (Cui et al. 2022, arXiv:2203.06906) a
share of the whole text; what is restored is, as in StructBERT, the token. Exactly k = round(ratio · tokens) places of
each row are chosen, at least two; their tokens are permuted among themselves, all k! ways being equally likely, so that
some may stay. With [CLS] = 2, [SEP] = 3, mask = 4, 1 as the end and ratio 0.5, an encoder gets

    window                11   12   13   14   15   16
    chosen                      x         x         x
    input_ids         2   11   16   13   12   15   14    3
    labels         -100 -100   12 -100   14 -100   16 -100

and with `mark` a mask before each chosen place, which is not scored:

    input_ids         2   11    4   16   13    4   12   15    4   14    3
    labels         -100 -100 -100   12 -100 -100   14 -100 -100   16 -100

A model with a decoder writes the whole original sequence; a decoder alone reads the permuted one first, and an end:

    encoder_decoder
    input_ids     2 11 16 13 12 15 14  3
    labels        2 11 12 13 14 15 16  3

    decoder
    input_ids    11 16 13 12 15 14  1 11 12 13 14 15
    labels        … (-100, six times) 11 12 13 14 15 16

With `unit: sentence` the sentences are permuted instead (Lewis et al. 2020, BART, arXiv:1910.13461, section 2.2), and
an encoder is scored wherever a token came from another place. Here 13 and 15 end sentences, and the window cuts off the
last:

    input_ids         2   14   15   11   12   13   16    3
    labels         -100   11   12   13   14   15 -100 -100

Special tokens, the ends of documents among them, stay where they are, and no sentence goes across them. If documents
are kept apart, tokens and sentences move inside their own; a decoder then reads and writes one document after the
other.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from sslm.data.stream import noise
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary
from sslm.models.architecture import auto_class_of
from sslm.models.build import check_causal
from sslm.objectives.masked_lm import MaskedLM
from sslm.objectives.special_tokens import PADDING, Around, documents_of, masked, text_starts
from sslm.system.errors import UserError
from sslm.training.module import Objective

UNITS, LAYOUTS = ("token", "sentence"), ("encoder", "encoder_decoder", "decoder")


@dataclass(frozen=True)
class TokenOrderRecipe(Recipe):
    """Restoring the order of tokens or sentences, for encoders, decoders, and models with both."""

    keeps_documents = True

    ratio: float = 0.15
    """Share of a row's tokens that are permuted among themselves; not used where sentences are."""
    unit: Literal["token", "sentence"] = "token"
    """What is permuted: token or sentence."""
    mark: bool = False
    """Whether a mask token before each chosen place tells the model which were chosen; tokens only."""
    layout: Literal["encoder", "encoder_decoder", "decoder"] = "encoder"
    """What kind of model restores the order; follows from the architecture."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            rule = "the share of tokens that are permuted lies between 0 and 1, 0 excluded"
            raise UserError(f"--objective.ratio {self.ratio}: {rule}; type --objective.ratio 0.15")
        if self.unit not in UNITS:
            raise UserError(f"--objective.unit {self.unit}: expected one of {', '.join(UNITS)}")
        if self.layout not in LAYOUTS:
            raise UserError(f"--objective.layout {self.layout}: expected one of {', '.join(LAYOUTS)}")
        if self.mark and self.unit == "sentence":
            instead = "type --objective.unit token, or leave --objective.mark out"
            raise UserError(f"--objective.mark true: only tokens are marked, not sentences; {instead}")

    @property
    def predicts_next_token(self) -> bool:
        return self.layout == "decoder"

    def special_tokens(self, seq_len: int) -> SpecialTokens:
        return SpecialTokens(mask=self.mark, pad=self.layout != "decoder")

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        """Longest window whose input has no more than seq_len tokens.

        It has exactly seq_len, unless one token more in the window is two in the input: a decoder has it twice,
        and it may bring a mark. Then the input may have one less, or two if both are so.
        """
        assert vocabulary is not None
        room = seq_len - self._around(vocabulary).num_tokens
        length = bisect_right(range(seq_len + 1), room, key=self._input_len) - 1
        if length < 2:
            needs = "token_order needs room for two tokens that change places, besides its own"
            raise UserError(f"--seq_len {seq_len}: {needs}; type --seq_len 512")
        return length

    def max_scored(self, seq_len: int, vocabulary: Vocabulary | None) -> int | None:
        window_len = self.window_len(seq_len, vocabulary)
        if self.layout == "decoder":
            return window_len
        return self._most(window_len) if self.layout == "encoder" and self.unit == "token" else None

    def _around(self, vocabulary: Vocabulary) -> Around:
        if self.layout == "decoder":
            return Around(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return Around.encoded(vocabulary) if self.layout == "encoder" else Around.decoded(vocabulary)

    def _input_len(self, window_len: int) -> int:
        """Tokens of the input that a window gives, without what stands around it."""
        marks = self._most(window_len) if self.mark else 0
        return window_len + marks + (window_len if self.layout == "decoder" else 0)

    def _most(self, window_len: int) -> int:
        return int(self._num_chosen(np.array(window_len)))

    def _num_chosen(self, eligible: Ints) -> Ints:
        num: Ints = np.maximum(np.rint(self.ratio * eligible).astype(np.int64), 2)
        return np.minimum(num, eligible)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        documents = documents_of(examples)
        real = documents >= 0
        permute = self._tokens if self.unit == "token" else self._sentences
        source, scored = permute(examples, documents, vocabulary, seed)
        inputs = np.where(real, examples.tokens.ravel()[source], vocabulary.pad)
        original = np.where(real, examples.tokens, IGNORED)
        labels, segments = np.where(scored, original, IGNORED), documents
        if self.mark:
            inputs, labels, segments = self._marked(inputs, labels, documents, scored, vocabulary)

        if self.layout == "decoder":
            batch = _continued(inputs, segments, original, documents, vocabulary)
            if examples.documents is not None:
                batch = _by_document(batch)
        else:
            around = self._around(vocabulary)
            batch = {
                "input_ids": around.wrap(inputs, segments, vocabulary.pad),
                "segment_ids": around.wrap_documents(segments),
            }
            if self.layout == "encoder":
                batch["labels"] = around.unscored().wrap(labels, segments, IGNORED)
            else:
                batch["labels"] = around.wrap(original, documents, IGNORED)
                batch["decoder_segment_ids"] = around.wrap_documents(documents)
        return masked(batch, examples, always=self.mark)

    def _tokens(self, examples: Examples, documents: Ints, vocabulary: Vocabulary, seed: int) -> tuple[Ints, Bools]:
        """[n, length] from which place each place's token comes, and whether it was chosen."""
        eligible = ~vocabulary.special[examples.tokens] & (documents >= 0)
        keys = noise.words(examples, eligible.shape[1], seed, "chosen")
        chosen = noise.chosen(keys, eligible, self._num_chosen(eligible.sum(axis=1)))
        rows, places = np.nonzero(chosen)
        group = rows * eligible.shape[1] + documents[rows, places]
        order = noise.shuffled(group, noise.words_at(examples, rows, places, seed, "order"))
        source = np.arange(eligible.size).reshape(eligible.shape)  # in the flattened batch
        source[rows, places] = source[rows, places][order]
        return source, chosen

    def _sentences(self, examples: Examples, documents: Ints, vocabulary: Vocabulary, seed: int) -> tuple[Ints, Bools]:
        """[n, length] from which place each place's token comes, and whether that is another."""
        tokens, length = examples.tokens, examples.tokens.shape[1]
        stays = vocabulary.special[tokens] | (documents < 0)
        texts = text_starts(stays, documents)
        begins = texts.copy()
        begins[:, 1:] |= vocabulary.ends_sentence[tokens[:, :-1]]
        rows, places = np.nonzero(begins)
        keys = noise.words_at(examples, rows, places, seed, "order")
        order = noise.shuffled(np.cumsum(texts, dtype=np.int64)[begins.ravel()], keys)
        lengths = np.diff(rows * length + places, append=tokens.size)[order]
        first = np.cumsum(lengths) - lengths  # where each stands now, rows one after the other
        source = np.repeat((rows * length + places)[order] - first, lengths) + np.arange(tokens.size)
        return source.reshape(tokens.shape), (source != np.arange(tokens.size)).reshape(tokens.shape)

    def _marked(
        self, inputs: Ints, labels: Ints, documents: Ints, scored: Bools, vocabulary: Vocabulary
    ) -> tuple[Ints, Ints, Ints]:
        """The same with a mask before each scored place, and as many places more as a window can have masks."""
        assert vocabulary.mask is not None
        n, length = inputs.shape
        places = np.arange(length) + np.cumsum(scored, axis=1)
        masks = np.nonzero(scored)[0], places[scored] - 1

        width = length + self._most(length)
        places_of_all = np.arange(n)[:, None] * width + places

        def moved(values: Ints, fill: int) -> Ints:
            out = np.full(n * width, fill)
            out[places_of_all] = values
            return out.reshape(n, width)

        inputs, labels, segments = moved(inputs, vocabulary.pad), moved(labels, IGNORED), moved(documents, PADDING)
        inputs[masks], segments[masks] = vocabulary.mask, documents[scored]
        return inputs, labels, segments


def _continued(inputs: Ints, segments: Ints, original: Ints, documents: Ints, vocabulary: Vocabulary) -> Arrays:
    """A decoder's batch: what is read, then what is written."""
    given = np.roll(original, 1, axis=1)  # of what is written each token follows the one before, and the first the end
    given[:, 0] = vocabulary.end
    given[:, 1:][documents[:, 1:] != documents[:, :-1]] = vocabulary.end
    given[documents < 0] = vocabulary.pad
    return {
        "input_ids": np.concatenate([inputs, given], axis=1),
        "labels": np.concatenate([np.full_like(inputs, IGNORED), original], axis=1),
        "segment_ids": np.concatenate([segments, documents], axis=1),
    }


def _by_document(batch: Arrays) -> Arrays:
    """The same with each document's places in one piece, in their order, and padding last."""
    segments = batch["segment_ids"]
    n, length = segments.shape
    order = np.argsort(np.where(segments < 0, length, segments), axis=1, kind="stable")
    order += np.arange(n)[:, None] * length
    return {name: values.ravel().take(order) for name, values in batch.items()}


class TokenOrder(Objective):
    """Restoring order with an encoder's masked-LM head, or with a decoder that writes the whole text again."""

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    default_model: ClassVar[dict[str, Any]] = MaskedLM.default_model
    default_lr: ClassVar[float] = 1e-3
    recipe_class = TokenOrderRecipe
    metric_names = ("accuracy", "restored_order")
    layout: ClassVar[str] = "encoder"

    @classmethod
    def for_model_type(cls, model_type: str) -> type[Objective]:
        by_auto_class = {kind.auto_class: kind for kind in (TokenOrder, EncoderDecoderTokenOrder, DecoderTokenOrder)}
        return by_auto_class[auto_class_of(model_type)]

    @classmethod
    def make_recipe(cls, settings: Mapping[str, Any]) -> Recipe:
        if (asked := settings.get("layout", cls.layout)) != cls.layout:
            raise UserError(f"--objective.layout {asked}: this model is for {cls.layout}; leave the flag out")
        return TokenOrderRecipe(**{**settings, "layout": cls.layout})

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Count right tokens, and those at whose place another token is read: copying gets none of these right.

        Which these are is known if what is read and what is written stand side by side: not if a decoder's input has
        marks, or its documents follow one another.
        """
        labels, reads = batch["labels"], batch["input_ids"]
        shares = super().correct(batch, predicted)
        if self.layout == "decoder":  # what is read stands before what is written
            reads = reads.roll(labels.shape[1] // 2, dims=1)
        apart = self.recipe.mark or (self.layout == "decoder" and "segment_ids" in batch)
        if self.layout == "encoder" or not apart:
            shares["restored_order"] = (predicted == labels, (labels != IGNORED) & (reads != labels))
        return shares


class EncoderDecoderTokenOrder(TokenOrder):
    """The decoder writes the whole original sequence."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_lr: ClassVar[float] = 4e-3
    layout = "encoder_decoder"


class DecoderTokenOrder(TokenOrder):
    """The permuted sequence is read, and the original written after it."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    default_lr: ClassVar[float] = 4e-3
    layout = "decoder"

    def check_model(self, model: PreTrainedModel) -> None:
        check_causal(model)
