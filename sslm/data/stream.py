"""Windows of a corpus: what is trained on, what is held out, and the tokens at any position.

A window is `window_len` tokens; windows start every `stride` tokens and never cross shards.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.order import window_at
from sslm.data.shards import Corpus, Shard

HELD_OUT_SHARE = 0.01


@dataclass(frozen=True)
class Region:
    """Tokens start … end of one shard."""

    shard: Shard
    start: int
    end: int


def whole(corpus: Corpus) -> list[Region]:
    """All of a corpus, its held-out documents too."""
    return [Region(shard, 0, shard.num_tokens) for shard in corpus.shards]


def split(corpus: Corpus, batch_tokens: int) -> tuple[list[Region], list[Region]]:
    """(training, held-out) regions, which share no token.

    Held out are the documents that preparation set aside. Where these are less than 1 % or than one batch, as in a corpus
    of few documents, so are the training shards' last tokens: 1 %, at least a batch.

    >>> shard = Shard("train-00000.bin", "train", 1000, 1, 4000, "")
    >>> training, held_out = split(Corpus(Path("."), "uint16", 256, "", "", (shard,)), batch_tokens=64)
    >>> training[0].end, held_out[0].start, held_out[0].end
    (936, 936, 1000)
    """
    held_out = [Region(shard, 0, shard.num_tokens) for shard in corpus.shards if shard.split == "val"]
    training = [Region(shard, 0, shard.num_tokens) for shard in corpus.shards if shard.split == "train"]
    enough = max(int(corpus.num_tokens * HELD_OUT_SHARE), batch_tokens)
    missing = enough if sum(r.end - r.start for r in held_out) < enough else 0
    while missing > 0 and training:
        last = training.pop()
        cut = max(last.end - missing, 0)
        missing -= last.end - cut
        held_out.append(Region(last.shard, cut, last.end))
        if cut:
            training.append(Region(last.shard, 0, cut))
    return training, held_out


class Stream:
    """Random access to the windows of some regions of a corpus."""

    def __init__(self, corpus: Corpus, regions: list[Region], window_len: int, stride: int) -> None:
        self.corpus, self.regions, self.window_len, self.stride = corpus, regions, window_len, stride
        counts = [max((r.end - r.start - window_len) // stride + 1, 0) for r in regions]
        self.first_window = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """[regions + 1] number of each region's first window."""
        self._tokens: list[NDArray[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": None}  # maps are opened anew in another process

    @property
    def num_windows(self) -> int:
        return int(self.first_window[-1])

    def fingerprint(self) -> dict[str, Any]:
        """What decides which tokens stand in which window."""
        regions = [[asdict(r.shard)["sha256"], r.start, r.end] for r in self.regions]
        return {
            "corpus": self.corpus.sha256,
            "regions": regions,
            "window_len": self.window_len,
            "stride": self.stride,
        }

    def windows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] window numbers -> [n, window_len] token ids."""
        if self._tokens is None:
            self._tokens = [self.corpus.tokens(r.shard) for r in self.regions]
        regions = np.searchsorted(self.first_window, numbers, side="right") - 1
        starts = (numbers - self.first_window[regions]) * self.stride
        out = np.empty((len(numbers), self.window_len), self.corpus.dtype)
        for row, region, start in zip(out, regions, starts, strict=True):
            begin = self.regions[region].start + start
            row[:] = self._tokens[region][begin : begin + self.window_len]
        return out.astype(np.int64)

    def at(self, positions: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[n] positions -> ([n, window_len] token ids, [n] epochs), in the shuffled order of `seed`."""
        epochs, numbers = window_at(positions.astype(np.uint64), self.num_windows, seed)
        return self.windows(numbers), epochs
