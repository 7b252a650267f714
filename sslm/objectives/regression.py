"""Regression: a number for each text, or pair of texts (Devlin et al. 2018, section 4.1, STS-B).

With [CLS] = 2, [SEP] = 3, padding 0 and seq_len 6:

    row               "so fine"  4.5
    input_ids         2 7 9 3 0 0
    attention_mask    1 1 1 1 0 0
    labels            4.5
"""

from dataclasses import dataclass

import numpy as np

from sslm.data.labelled.numbers import Numbers
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.labelled import LabelledRecipe, inputs


@dataclass(frozen=True)
class RegressionRecipe(LabelledRecipe):
    """Numbers of texts or of pairs."""

    def task(self, seq_len: int) -> Task:
        return Numbers(seq_len)

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        assert vocabulary is not None
        fields = self.fields(examples, vocabulary)
        return {**inputs(fields, vocabulary), "labels": fields["labels"][:, 0].astype(np.uint32).view(np.float32)}
