"""Windows of a corpus: which tokens are trained on, which are held out, and how regions are cut into windows."""

from dataclasses import dataclass

from sslm.data.corpus.shards import Corpus, Shard

HELD_OUT_SHARE = 0.01


@dataclass(frozen=True)
class Region:
    """Tokens start … end of one shard."""

    shard: Shard
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def whole(corpus: Corpus) -> list[Region]:
    """List all of a corpus' shards, its held-out documents too."""
    return [Region(shard, 0, shard.num_tokens) for shard in corpus.shards]


def split(corpus: Corpus, batch_tokens: int) -> tuple[list[Region], list[Region]]:
    """Split a corpus into (training, held-out) regions, which share no token.

    Held out are the documents that preparation set aside. If these are less than 1 % or than one batch, as in a corpus
    of few documents, the training shards' last tokens are held out too.

    >>> shard = Shard("train-00000.bin", "train", 1000, 1, 4000, "")
    >>> training, held_out = split(Corpus(Path("."), "uint16", 256, "", "", (shard,)), batch_tokens=64)
    >>> training[0].end, held_out[0].start, held_out[0].end
    (936, 936, 1000)
    """
    held_out = [region for region in whole(corpus) if region.shard.split == "val"]
    training = [region for region in whole(corpus) if region.shard.split == "train"]
    enough = max(int(corpus.num_tokens * HELD_OUT_SHARE), batch_tokens)
    missing = enough if sum(map(len, held_out)) < enough else 0
    while missing > 0 and training:
        last = training.pop()
        cut = max(last.end - missing, 0)
        missing -= last.end - cut
        held_out.append(Region(last.shard, cut, last.end))
        if cut:
            training.append(Region(last.shard, 0, cut))
    return training, held_out


def by_split(corpus: Corpus) -> tuple[list[Region], list[Region]]:
    """List what preparation set aside to train on, and what it held out."""
    regions = whole(corpus)
    train, held_out = ([region for region in regions if region.shard.split == split] for split in ("train", "val"))
    return train, held_out


class Cut:
    """Windows that start every `stride` tokens of a region; its rest, too short for a window, is not read."""

    def __init__(self, regions: list[Region], window_len: int, stride: int) -> None:
        self.window_len, self.stride = window_len, stride
        self.num_windows = tuple(max((len(r) - window_len) // stride + 1, 0) for r in regions)
        read = sum((n - 1) * stride + window_len for n in self.num_windows if n)
        self.num_unread = sum(map(len, regions)) - read
        """Tokens in no window."""


class Whole:
    """Windows that hold one whole document each; none may be longer than a window."""

    def __init__(self, regions: list[Region], window_len: int) -> None:
        self.window_len = self.stride = window_len
        self.num_windows = tuple(region.shard.num_documents for region in regions)
        self.num_unread = 0
