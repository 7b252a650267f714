"""The pure part of an objective: how the corpus' tokens become a batch. The data plane needs no more of an objective."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Recipe:
    """An objective's settings, and the functions of them. Small and picklable: loader processes get it."""

    def window_len(self, seq_len: int) -> int:
        """Corpus tokens that one example eats."""
        raise NotImplementedError

    def stride(self, seq_len: int) -> int:
        """Corpus tokens from one window's start to the next's."""
        raise NotImplementedError

    def make_batch(
        self, windows: NDArray[np.int64], positions: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> Arrays:
        """[n, window_len] tokens -> the model's inputs and `labels`, each [n, …].

        Depends on nothing but its arguments; a row on nothing but its own window, position and epoch.
        """
        raise NotImplementedError
