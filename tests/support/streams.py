"""Small corpora and streams to test with: shards of tokens that are all different."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslm.config.augment import parse_augment
from sslm.data.corpus.shards import Corpus
from sslm.data.corpus.writer import CorpusWriter
from sslm.data.stream.augmentation.augmenter import Augmenter
from sslm.data.stream.mixture import Mixture, Stage
from sslm.data.stream.order import Order
from sslm.data.stream.packing import pack
from sslm.data.stream.stream import Stream, StreamSource
from sslm.data.stream.windows import Cut, whole


def make_corpus(folder: Path, shards: Sequence[Sequence[int]], first: int = 0) -> Corpus:
    """Per shard the lengths of its documents; tokens count up from `first` through all shards."""
    from sslm.data.corpus.shards import open_corpus

    folder.mkdir(parents=True)
    with CorpusWriter(folder, 1 << 17) as writer:
        for lengths in shards:
            ids = np.arange(first, first + sum(lengths), dtype=np.uint32)
            writer.add("train", ids, np.cumsum(lengths), sum(lengths))
            writer.finished.append(writer._open.pop("train").close())  # here this shard ends
            first += len(ids)
        writer.finish("test", "", [])
    return open_corpus(folder)


def make_stream(
    *corpora: Corpus,
    weights: Sequence[tuple[int, tuple[int, ...]]] = ((0, (1,)),),
    window_len: int = 9,
    stride: int = 8,
    seed: int = 0,
    block_shards: int | None = None,
    best_fit: bool = False,
    with_documents: bool = False,
    augment: str | None = None,
) -> Stream:
    """A stream over all of some corpora, called a, b, c …; weights are (position, weights from there on).

    Noise is in the first alone.
    """
    noise = Augmenter(parse_augment(augment), seed, np.zeros(1 << 17, bool), None) if augment else None
    sources = []
    for name, corpus in zip("abcdef", corpora, strict=False):
        regions = whole(corpus)
        windows = (
            pack(corpus, regions, window_len, stride, corpus.folder) if best_fit else Cut(regions, window_len, stride)
        )
        order = Order(windows.num_windows, (seed, "order", name), block_shards)
        sources.append(StreamSource(name, corpus, regions, windows, order, noise if name == "a" else None))
    mixture = Mixture(tuple(Stage(position, of_each) for position, of_each in weights))
    return Stream(sources, mixture, window_len, 1 << 17, with_documents)
