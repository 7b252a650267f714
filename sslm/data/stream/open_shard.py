"""Shards as plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.shards import Corpus, resized
from sslm.data.stream.windows import Region


class OpenShard:
    """A shard, memory-mapped, as plain arrays: slicing a np.memmap takes three times as long."""

    def __init__(self, corpus: Corpus, region: Region, reads_ends: bool) -> None:
        tokens = corpus.tokens(region.shard)
        ends = corpus.document_ends(region.shard) if reads_ends else np.empty(0, np.int64)
        self.tokens, self.ends = tokens.view(np.ndarray), ends.view(np.ndarray)
        self._file, self._maps = region.shard.file, [m for m in (tokens, ends) if isinstance(m, np.memmap)]
        self._rows: NDArray[Any] | None = None

    def check(self) -> None:
        """Raise BadShard if a file is shorter than what is mapped: reading past its end would end the process."""
        for array in self._maps:
            file_map: Any = array.base
            expected = array.offset + array.nbytes
            if (actual := file_map.size()) < expected:  # known even of a file that was removed
                raise resized(self._file, Path(str(array.filename)), actual, expected)

    def rows(self, window_len: int) -> NDArray[Any]:
        """View the window that starts at each token: [num_tokens − window_len + 1, window_len]."""
        if self._rows is None:
            size = self.tokens.itemsize
            shape = (max(len(self.tokens) - window_len + 1, 0), window_len)
            self._rows = np.lib.stride_tricks.as_strided(self.tokens, shape, (size, size), writeable=False)
        return self._rows

    def stretches(self, starts: NDArray[np.int64], ends: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Copy [n] stretches of at most `length` tokens: [n, length], 0 after a stretch's end."""
        here = starts[:, None] + np.arange(length)
        return np.where(here < ends[:, None], self.tokens[np.minimum(here, ends[:, None] - 1)], 0)
