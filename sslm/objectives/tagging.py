"""Tagging of words: names of people and places, parts of speech (Devlin et al. 2018, section 5.3, CoNLL-2003).

A word's tag is predicted at its first token. With tags O = 0, B-PER = 1, [CLS] = 2, [SEP] = 3, padding 0 and seq_len 8,
where "Muller" is two tokens:

    words                  Muller      sleeps
    tags                   B-PER       O
    input_ids         2    7    9      8    3    0    0    0
    attention_mask    1    1    1      1    1    0    0    0
    labels         -100    1 -100      0 -100 -100 -100 -100
"""

from dataclasses import dataclass

import numpy as np

from sslm.data.labelled.tags import Tags
from sslm.data.labelled.task import Task
from sslm.data.stream.recipe import IGNORED, Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.labelled import LabelledRecipe, inputs


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
