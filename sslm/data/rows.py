"""Examples one by one, as models of transformers take them: for trainers that make batches themselves."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslm.data.stream.batches import with_tensors
from sslm.data.stream.recipe import IGNORED, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import Vocabulary


class Rows(Dataset[dict[str, Tensor]]):
    """Examples by number, in the run's order; item i is the same in whatever batch, process or epoch it is read.

    A row has what the model's `forward` takes: `input_ids`, `labels` … Labels that are next tokens stand at their own
    places, as transformers' losses expect, which shift them and so lose the last; `shift_labels` has all, shifted
    already, for losses that take it.

    Args:
        read: finds the examples of some numbers.
        num: of examples.
        recipe: the objective's pure part.
        vocabulary: the tokenizer's tables, for recipes that need them.
        seed: seed of the noise.
    """

    def __init__(
        self, read: Callable[[Ints], Examples], num: int, recipe: Recipe, vocabulary: Vocabulary | None, seed: int
    ) -> None:
        self.read, self.num, self.recipe, self.vocabulary, self.seed = read, num, recipe, vocabulary, seed

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Rows that are read together, as torch's DataLoader asks for them."""
        wanted = np.asarray(numbers, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.num:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.num}")
        made = self.recipe.make_batch(self.read(wanted), self.vocabulary, self.seed)
        tensors = with_tensors({"tensors": made})["tensors"]
        if self.recipe.predicts_next_token:
            tensors["shift_labels"] = tensors["labels"]
            first = torch.full_like(tensors["labels"][:, :1], IGNORED)
            tensors["labels"] = torch.cat([first, tensors["labels"][:, :-1]], dim=1)
        return [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]
