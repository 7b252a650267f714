"""A block's words as numbers: what stands between white space, as the sources of the rules split texts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """The words of a block's documents, one document after the other."""

    ids: Ints
    """[words] number of each in the vocabulary."""
    starts: Ints
    """[documents + 1] where each document begins, and the end of the last."""
    vocabulary: list[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """Split texts at white space; of Chinese, Japanese or Thai a word is then what stands between two spaces."""
        number: defaultdict[str, int] = defaultdict(count().__next__)
        ids = [np.fromiter(map(number.__getitem__, text.split()), np.int64) for text in texts]
        starts = np.cumsum([0, *map(len, ids)])
        return cls(np.concatenate([np.empty(0, np.int64), *ids]), starts, list(number))

    @cached_property
    def documents(self) -> Ints:
        """[words] the document of each."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @cached_property
    def lengths(self) -> Ints:
        """[vocabulary] characters."""
        return self.each(len, np.int64)

    @cached_property
    def ends(self) -> Ints:
        """[words + 1] characters of all words up to here, without spaces."""
        return np.concatenate([[0], np.cumsum(self.lengths[self.ids])])

    def each(self, measure: Callable[[str], int], kind: type[np.generic] = np.bool_) -> NDArray[Any]:
        """[vocabulary] a measure of each word of the vocabulary."""
        return np.fromiter(map(measure, self.vocabulary), kind, len(self.vocabulary))

    def sums(self, values: NDArray[Any]) -> Ints:
        """[documents] sum of a measure of the vocabulary, over a document's words."""
        up_to = np.concatenate([[0], np.cumsum(values[self.ids])])
        return np.diff(up_to[self.starts])

    def only(self, documents: Sequence[int]) -> "Words":
        """Leave out all documents but these, which ascend."""
        sizes = np.diff(self.starts)
        is_kept = np.zeros(len(sizes), bool)
        is_kept[documents] = True
        return Words(self.ids[np.repeat(is_kept, sizes)], np.cumsum([0, *sizes[is_kept]]), self.vocabulary)
