"""Tagging of words: names of people and places, parts of speech (Devlin et al. 2018, section 5.3, CoNLL-2003).

A word's tag is predicted at its first token. With tags O = 0, B-PER = 1, [CLS] = 2, [SEP] = 3, padding 0 and seq_len 8,
where "Muller" is two tokens:

    words                  Muller      sleeps
    tags                   B-PER       O
    input_ids         2    7    9      8    3    0    0    0
    attention_mask    1    1    1      1    1    0    0    0
    labels         -100    1 -100      0 -100 -100 -100 -100
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sslm.data.labelled.tags import Tags
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import IGNORED, Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.task import CLASSES
from sslm.objectives.labelled import LabelledRecipe, Supervised, inputs
from sslm.training.scores import Scores, tag_scores
from sslm.training.window_scores import TagScores


@dataclass(frozen=True)
class TaggingRecipe(LabelledRecipe):
    """Tags of words."""

    def task(self, seq_len: int) -> Task:
        return Tags(seq_len)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        labels = fields["labels"]
        return {**inputs(fields, vocabulary), "labels": np.where(labels > 0, labels - 1, IGNORED)}


class Tagging(Supervised):
    """A tag for each word, with transformers' head for token classification."""

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    recipe_class = TaggingRecipe

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        return {**super().model_keys(recipe, labels), "problem_type": CLASSES}

    def scores(self) -> Scores | TagScores:
        held_out = None if self.data is None else self.data.held_out.labelled
        return tag_scores(self.labels) if held_out is None else TagScores(self.labels, held_out)

    def in_words(self, label: Tensor) -> str:
        return " ".join(self.labels[number] for number in label.tolist() if number != IGNORED)
