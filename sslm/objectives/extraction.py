"""Extractive question answering: where in a text a question's answer begins and ends (Rajpurkar et al. 2016, SQuAD).

A question and a window of its context are read as a pair; no answer is one at [CLS] (Devlin et al. 2018, section 4.3).
With [CLS] = 2, [SEP] = 3, padding 0 and seq_len 10, the question 7 8 and the context 11 12 13, whose last two tokens
are the answer:

    input_ids         2 7 8 3 11 12 13 3 0 0
    token_type_ids    0 0 0 0  1  1  1 1 0 0
    attention_mask    1 1 1 1  1  1  1 1 0 0
    context           0 0 0 0  1  1  1  0 0 0
    labels            5 6

`context` tells where an answer may stand. Answers of a question's windows become one, the likeliest, and are scored as
SQuAD's program scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sslm.data.labelled.answers import Answers
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.labelled import LabelledRecipe, Supervised, inputs
from sslm.system.errors import UserError
from sslm.training.window_scores import AnswerScores


@dataclass(frozen=True)
class ExtractionRecipe(LabelledRecipe):
    """Spans of contexts that answer questions."""

    overlap: int = 128
    """Tokens that the windows of a long context have in common, at most half of a window's."""

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise UserError(f"--objective.overlap {self.overlap}: expected a number of 0 or more, such as 128")

    def task(self, seq_len: int) -> Task:
        return Answers(seq_len, self.overlap)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        context = (fields["ends"] > 0).astype(np.int64)
        return {**inputs(fields, vocabulary), "context": context, "labels": fields["labels"]}


class Extraction(Supervised):
    """Where an answer begins and ends, with transformers' head for question answering; padding is never chosen."""

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    metric_names: ClassVar[tuple[str, ...]] = ()
    recipe_class = ExtractionRecipe

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        return {}

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def scores(self) -> AnswerScores | None:
        held_out = None if self.data is None else self.data.held_out.labelled
        return None if held_out is None else AnswerScores(held_out)

    def in_words(self, label: Tensor) -> str:
        first, last = label.tolist()
        return f"tokens {first} to {last}"
