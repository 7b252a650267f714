"""Regression: a number for each text, or pair of texts (Devlin et al. 2018, section 4.1, STS-B).

With [CLS] = 2, [SEP] = 3, padding 0 and seq_len 6:

    row               "so fine"  4.5
    input_ids         2 7 9 3 0 0
    attention_mask    1 1 1 1 0 0
    labels            4.5

The loss is the square of the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sslm.data.labelled.numbers import Numbers
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.task import NUMBER
from sslm.objectives.labelled import LabelledRecipe, Supervised, inputs
from sslm.training.scores import Scores, number_scores


@dataclass(frozen=True)
class RegressionRecipe(LabelledRecipe):
    """Numbers of texts or of pairs."""

    def task(self, seq_len: int) -> Task:
        return Numbers(seq_len)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        return {**inputs(fields, vocabulary), "labels": fields["labels"][:, :1].astype(np.uint32).view(np.float32)}


class Regression(Supervised):
    """A number for each text or pair, with transformers' head for sequence classification."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metric_names: ClassVar[tuple[str, ...]] = ()
    recipe_class = RegressionRecipe

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        return {**super().model_keys(recipe, ["number"]), "problem_type": NUMBER}

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def scores(self) -> Scores:
        return number_scores()

    def in_words(self, label: Tensor) -> str:
        return f"{label.item():.4g}"
