"""What objectives on labelled data share: records of a corpus become batches of one shape; a head, and its scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sslm.data.labelled.task import Task, field_of, unpacked
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary
from sslm.models.blocks import evaluating
from sslm.objectives.masked_lm import MaskedLM
from sslm.training.module import Objective
from sslm.training.samples import LABELLED, NUM_SAMPLES, on_one_line

SAMPLE_CHARS = 60


@dataclass(frozen=True)
class LabelledRecipe(Recipe):
    """A recipe whose examples are labelled rows, as its task puts them down."""

    def task(self, seq_len: int) -> Task:
        raise NotImplementedError

    def special_tokens(self, seq_len: int) -> SpecialTokens:
        return SpecialTokens(pad=True)

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return self.task(seq_len).record_len(0 if vocabulary is None else len(vocabulary.labels))

    def seq_len(self, examples: Examples, vocabulary: Vocabulary | None) -> int:
        """Find the seq_len that rows of this length are for: each token more makes them longer by as much."""
        none, one = (self.window_len(seq_len, vocabulary) for seq_len in (0, 1))
        return (int(examples.tokens.shape[1]) - none) // (one - none)

    def fields(self, examples: Examples, vocabulary: Vocabulary | None) -> dict[str, Ints]:
        """Read the records' fields: name -> [n, largest length], IGNORED after a field's end; `row` is [n, 1]."""
        task = self.task(self.seq_len(examples, vocabulary))
        sizes = (1, *task.capacities(0 if vocabulary is None else len(vocabulary.labels)))
        places = unpacked(examples.tokens, task.fields)
        return {
            name: field_of(examples.tokens, places[name], size, IGNORED)
            for name, size in zip(task.fields, sizes, strict=True)
        }


class Supervised(Objective):
    """A model of transformers with a task's head, taught by labelled rows."""

    default_model: ClassVar[dict[str, Any]] = MaskedLM.default_model
    default_lr: ClassVar[float] = 2e-4

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        names = dict(enumerate(labels))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}}

    @property
    def labels(self) -> list[str]:
        """Names of the labels, by number."""
        names: Any = self.network.model.config.id2label
        return [str(names[number]) for number in range(len(names))]

    def loss_metrics(self, loss: Tensor, data: Any) -> dict[str, Tensor]:
        return {}

    @property
    def samples_in_words(self) -> str:
        return LABELLED

    @torch.no_grad()
    def samples(self, data: Any) -> list[str]:
        rows = {name: tensor.to(self.device) for name, tensor in data.held_out.rows(self._sample_rows(data)).items()}
        with evaluating(self.network), self.trainer.precision_plugin.val_step_context():
            predicted = self.network(**rows, predict=True).tokens
        lines = []
        for ids, wanted, said in list(zip(rows["input_ids"], rows["labels"], predicted, strict=True))[:NUM_SAMPLES]:
            text = shortened(on_one_line(str(data.tokenizer.decode(ids.tolist(), skip_special_tokens=True))))
            lines.append(on_one_line(f"{text} >> {self.in_words(said)} ({self.in_words(wanted)})"))
        return lines

    def _sample_rows(self, data: Any) -> int:
        """Rows of a whole micro-batch: in validation's shape, which blocks are compiled for."""
        return self.micro_batch_size or data.val_batch_size // self.data_parallel_size

    def in_words(self, label: Tensor) -> str:
        """Say a row's label, or what is predicted, in words."""
        raise NotImplementedError


def shortened(text: str) -> str:
    """Keep a text's beginning, so that it fits on a line with what is said of it."""
    return text if len(text) <= SAMPLE_CHARS else text[: SAMPLE_CHARS - 1] + "…"


def inputs(fields: dict[str, Ints], vocabulary: Vocabulary) -> Arrays:
    """Pad what a model reads: input_ids, attention_mask, and token_type_ids if the tokenizer has any."""
    ids, types = fields["input_ids"], fields.get("token_type_ids")
    is_token: Bools = ids != IGNORED
    arrays: Arrays = {"input_ids": np.where(is_token, ids, vocabulary.pad), "attention_mask": is_token.astype(np.int64)}
    if types is not None and (types != IGNORED).any():
        arrays["token_type_ids"] = np.maximum(types, 0)
    return arrays
