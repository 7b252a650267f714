"""Classification of texts, or of pairs of texts (Devlin et al. 2018, section 4.1): one class each, or several labels.

With classes bad = 0 and good = 1, [CLS] = 2, [SEP] = 3, padding 0 and seq_len 6:

    row               "so fine"  good
    input_ids         2 7 9 3 0 0
    attention_mask    1 1 1 1 0 0
    labels            1

With `--objective.multi_label true` a row has any number of labels, and `labels` are a 0 or a 1 for each that there is.
"""

from dataclasses import dataclass

import numpy as np

from sslm.data.labelled.classes import BITS, Classes
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.labelled import LabelledRecipe, inputs


@dataclass(frozen=True)
class ClassificationRecipe(LabelledRecipe):
    """Classes of texts or of pairs."""

    multi_label: bool = False
    """Whether a row may have several labels at once, or none."""

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
            labels = labels[:, 0]
        return {**inputs(fields, vocabulary), "labels": labels}
