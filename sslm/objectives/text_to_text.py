"""Text to text: translation, summarisation, anything with a source and a target (Raffel et al. 2020, T5).

An encoder–decoder reads the source and writes the target. With the end 1, padding 0 and seq_len 6:

    source, target    7 8 9,  5 6
    input_ids         7 8 9 1 0 0
    attention_mask    1 1 1 1 0 0
    labels            5 6 1 -100 -100 -100

A causal model reads the source, a separator (`--objective.separator`, by default the end of a line: here 4), and goes
on with the target; only that is scored:

    input_ids            7    8    9  4  5  6
    attention_mask       1    1    1  1  1  1
    labels            -100 -100 -100  5  6  1
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sslm.data.labelled.task import Task
from sslm.data.labelled.texts import Continuations, Texts
from sslm.data.stream.recipe import IGNORED, Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.architecture import auto_class_of
from sslm.objectives.causal_lm import CausalLM
from sslm.objectives.labelled import LabelledRecipe, inputs
from sslm.objectives.span_corruption import SpanCorruption
from sslm.system.errors import UserError
from sslm.training.module import Objective


@dataclass(frozen=True)
class TextToTextRecipe(LabelledRecipe):
    """A text from a text, for models with encoder and decoder."""

    max_target_len: int | None = None
    """Longest target in tokens; default: seq_len, or half of it for a causal model."""
    prefix: str = ""
    """What stands before each source, such as "summarize: "."""

    def __post_init__(self) -> None:
        if self.max_target_len is not None and self.max_target_len < 2:
            flag = f"--objective.max_target_len {self.max_target_len}"
            raise UserError(f"{flag}: a target has two tokens at least, one and its end; type 128")

    def task(self, seq_len: int) -> Task:
        return Texts(seq_len, self.max_target_len, self.prefix)

    def num_positions(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return max(seq_len, self.max_target_len or 0)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        return {**inputs(fields, vocabulary), "labels": fields["labels"]}


@dataclass(frozen=True)
class CausalTextToTextRecipe(TextToTextRecipe):
    """A text from a text, for causal models."""

    separator: str = "\n"
    """What stands between a source and its target."""

    @property
    def predicts_next_token(self) -> bool:
        return True

    def task(self, seq_len: int) -> Task:
        return Continuations(seq_len, self.max_target_len, self.prefix, separator=self.separator)

    def num_positions(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return seq_len

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields, seq_len = self.fields(examples, vocabulary), self.seq_len(examples, vocabulary)
        source, target = fields["source"], fields["labels"]
        num_read, num_written = (np.sum(part != IGNORED, axis=1)[:, None] for part in (source, target))
        places = np.arange(seq_len + 1)
        is_written = (places >= num_read) & (places < num_read + num_written)
        written = np.take_along_axis(target, np.clip(places - num_read, 0, target.shape[1] - 1), axis=1)
        ids = np.where(is_written, written, np.where(places < num_read, source, IGNORED))
        labels = np.where(is_written, ids, IGNORED)[:, 1:]
        return {**inputs({"input_ids": ids[:, :-1]}, vocabulary), "labels": labels}


class TextToText(Objective):
    """A text from a text, with a model that has an encoder and a decoder."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    default_model: ClassVar[dict[str, Any]] = SpanCorruption.default_model
    default_lr: ClassVar[float] = 5e-4
    recipe_class = TextToTextRecipe
    metric_names = ("accuracy", "exact_match")

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Count right tokens, and targets all of whose tokens are right, each predicted from the true ones before it.

        A target is written so, the likeliest token after the other, if and only if all of its tokens are right.
        """
        labels = batch["labels"]
        is_target = labels != IGNORED
        is_whole = ~(is_target & (predicted != labels)).any(dim=1)
        return {**super().correct(batch, predicted), "exact_match": (is_whole, is_target.any(dim=1))}

    @classmethod
    def for_model_type(cls, model_type: str) -> type[Objective]:
        return CausalTextToText if auto_class_of(model_type) == "AutoModelForCausalLM" else TextToText


class CausalTextToText(TextToText):
    """A text from a text, with a causal model that goes on from the source."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    default_model: ClassVar[dict[str, Any]] = CausalLM.default_model
    default_lr: ClassVar[float] = 2e-4
    recipe_class = CausalTextToTextRecipe
