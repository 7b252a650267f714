"""Classification of texts, or of pairs of texts (Devlin et al. 2018, section 4.1): one class each, or several labels.

With classes bad = 0 and good = 1, [CLS] = 2, [SEP] = 3, padding 0 and seq_len 6:

    row               "so fine"  good
    input_ids         2 7 9 3 0 0
    attention_mask    1 1 1 1 0 0
    labels            1

The loss is the cross-entropy of the class; with `--objective.class_weights balanced` each row counts n / (C n_c), n_c
the rows of its class among n of C classes (King & Zeng 2001), so that all classes weigh alike.

With `--objective.multi_label true` a row has any number of labels, and `labels` are a 0 or a 1 for each that there is;
the loss is the binary cross-entropy of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslm.data.labelled.classes import BITS, Classes
from sslm.data.labelled.task import Task
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.task import CLASSES, SEVERAL
from sslm.objectives.labelled import LabelledRecipe, Supervised, inputs
from sslm.system.errors import UserError
from sslm.training.scores import Scores, class_scores, label_scores


@dataclass(frozen=True)
class ClassificationRecipe(LabelledRecipe):
    """Classes of texts or of pairs."""

    multi_label: bool = False
    """Whether a row may have several labels at once, or none."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """equal: each row counts 1; balanced: each class counts the same, whatever its number of rows."""

    def __post_init__(self) -> None:
        if self.multi_label and self.class_weights != "equal":
            raise UserError(
                "--objective.class_weights balanced: is for one class a row; leave --objective.multi_label out"
            )

    def task(self, seq_len: int) -> Task:
        return Classes(seq_len, self.multi_label)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        labels = fields["labels"]
        if self.multi_label:
            number = np.arange(len(vocabulary.labels))
            labels = labels[:, number // BITS] >> number % BITS & 1
        else:
            labels = labels[:, :1]
        return {**inputs(fields, vocabulary), "labels": labels}


class Classification(Supervised):
    """Classes of texts or of pairs, with transformers' head for sequence classification."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    recipe_class = ClassificationRecipe
    recipe: ClassificationRecipe

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        assert isinstance(recipe, ClassificationRecipe)
        kind = SEVERAL if recipe.multi_label else CLASSES
        return {**super().model_keys(recipe, labels), "problem_type": kind}

    def network_settings(self, data: DataModule | None) -> dict[str, Any]:
        if self.recipe.class_weights == "equal" or data is None:
            return {}
        counts = torch.tensor(data.label_counts[0].counts, dtype=torch.float64)
        weights = counts.sum() / (len(counts) * counts.clamp(min=1))
        return {"class_weights": weights.float()}

    def scores(self) -> Scores:
        return (label_scores if self.recipe.multi_label else class_scores)(len(self.labels))

    def in_words(self, label: Tensor) -> str:
        numbers: list[int] = label.tolist()
        if self.recipe.multi_label:
            return ", ".join(name for name, has in zip(self.labels, numbers, strict=True) if has == 1) or "none"
        return self.labels[numbers[0]]
