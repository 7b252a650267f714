"""What recipes on labelled data share: records of a corpus become batches of one shape."""

from dataclasses import dataclass

import numpy as np

from sslm.data.labelled.task import Task, field_of, unpacked
from sslm.data.stream.recipe import IGNORED, Arrays, Bools, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary


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


def inputs(fields: dict[str, Ints], vocabulary: Vocabulary) -> Arrays:
    """Pad what a model reads: input_ids, attention_mask, and token_type_ids if the tokenizer has any."""
    ids, types = fields["input_ids"], fields.get("token_type_ids")
    is_token: Bools = ids != IGNORED
    arrays: Arrays = {"input_ids": np.where(is_token, ids, vocabulary.pad), "attention_mask": is_token.astype(np.int64)}
    if types is not None and (types != IGNORED).any():
        arrays["token_type_ids"] = np.maximum(types, 0)
    return arrays
