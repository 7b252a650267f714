"""The two streams of a run, to train on and to validate on: corpora opened, split, cut or packed, shuffled and mixed.

This needs no Lightning, and no transformers if the corpora are prepared. A training loop of your own reads batches so:

    streams = open_streams(DataConfig(train="corpus"), recipe, seq_len=1024, batch_size=16)
    for batch in Loader(TrainSteps(streams.train, recipe, BatchSizes.even(16), seed=0), first=0, end=1000):
        batch["tensors"]["input_ids"], batch["tensors"]["labels"]
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslm.config import DataConfig, SourceConfig
from sslm.data.corpora import open_corpora
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.shards import Corpus
from sslm.data.corpus.tokenizer import parse_tokenizer
from sslm.data.labelled.prepare import open_labelled, open_rows
from sslm.data.labelled.rows import Rows
from sslm.data.stream import windows
from sslm.data.stream.augmentation.augmenter import Augmenter
from sslm.data.stream.augmentation.making import augmenters_of, refuse_rows
from sslm.data.stream.check import check_recipe
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.data.stream.mixture import Mixture, Stage, parse_weights, source_names
from sslm.data.stream.order import Order
from sslm.data.stream.packing import Packed, pack
from sslm.data.stream.recipe import Recipe
from sslm.data.stream.stream import Stream, StreamSource
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.data.stream.windows import Cut, Region, Whole
from sslm.system.errors import UserError, nearest
from sslm.system.paths import caches
from sslm.system.terminal import plural

REMOTE_BLOCK_SHARDS = 4
"""Default number of a remote corpus' shards that are shuffled together."""


class Streams(NamedTuple):
    """The streams of a run, and the tokenizer that made their ids."""

    train: Stream
    val: Stream
    tokenizer: str | None
    """Folder or name of the tokenizer that made the ids, or None if they came without one."""
    vocabulary: Vocabulary | None
    """The tokenizer's tables, with the special tokens that the recipe needs, or None if it needs none."""
    val_rows: tuple[Rows, ...] = ()
    """The table in which each source's held-out rows stand, if they are labelled."""


class Part(NamedTuple):
    """The regions of one corpus that one stream reads, under its source's name in the mixture."""

    name: str
    corpus: Corpus
    regions: list[Region]


def cache_folder(data: DataConfig) -> Path:
    """Find the folder for prepared corpora, packing plans and checksums."""
    return Path(data.cache_dir) if data.cache_dir else caches()


def open_streams(
    data: DataConfig,
    recipe: Recipe,
    seq_len: int,
    batch_size: int,
    seed: int = 0,
    tokenizer: str | None = None,
    first_batch_size: int | None = None,
) -> Streams:
    """Open both streams, preparing corpora first if need be. Any number of processes may call at once.

    `batch_size` counts the sequences of the largest optimizer step, over all devices; `first_batch_size`, if it was
    another at the beginning, decides how much text is held out. `tokenizer` is used if `data` names none.

    Raises:
        UserError: bad text, a tokenizer that does not match, less text than one batch.
    """
    if data.document_mask and not recipe.keeps_documents:
        raise UserError(
            f"--data.document_mask true: {type(recipe).__name__.removesuffix('Recipe')}'s noise goes across documents, "
            f"as its paper's does; leave the flag out"
        )
    cache_dir = cache_folder(data)
    sources = data.sources or [SourceConfig(path=data.train, name="")]
    names = source_names(sources)

    name, special_tokens = data.tokenizer or tokenizer, recipe.special_tokens(seq_len)
    asked = parse_tokenizer(name) if name else None
    if isinstance(asked, str) and special_tokens is not None:
        extended(tokenizers.load(asked), special_tokens)  # one that can't be is refused before any text is prepared
    labels: tuple[str, ...] = ()
    val_rows: tuple[Rows, ...] = ()
    if task := recipe.task(seq_len):
        refuse_rows(data)
        paths = [source.path for source in sources]
        corpora, val, tokenizer, labels, val_rows = open_labelled(paths, data.val, task, asked, data, cache_dir)
    else:
        validation = [] if data.val is None else [SourceConfig(data.val)]
        corpora, tokenizer = open_corpora([*sources, *validation], asked, data, cache_dir)
        val = corpora.pop() if validation else None
    vocabulary = _vocabulary(special_tokens, tokenizer, labels)
    window_len, stride = recipe.window_len(seq_len, vocabulary), recipe.stride(seq_len, vocabulary)
    if not task:
        vocab_size = max(corpus.vocab_size for corpus in corpora)
        padded, documents = data.packing == "best_fit", data.document_mask
        check_recipe(recipe, seq_len, vocabulary, vocab_size, padded=padded, documents=documents)

    mixture = _mixture(data, sources, names, corpora, seq_len)
    least = max((first_batch_size or batch_size) // len(corpora), 1) * window_len
    train_parts, val_parts = _parts(names, corpora, val, least)
    augmenters = augmenters_of(data, corpora, tokenizer, seed)

    def stream(parts: list[Part], augmenters: Sequence[Augmenter | None]) -> Stream:
        opened = [_source(part, data, window_len, stride, seed, cache_dir) for part in parts]
        opened = [replace(source, augment=one) for source, one in zip(opened, augmenters, strict=True)]
        largest = max(part.corpus.vocab_size for part in parts)
        return Stream(opened, mixture, window_len, largest, data.document_mask)

    train, held_out = stream(train_parts, augmenters), stream(val_parts, [None] * len(val_parts))
    streams = Streams(train, held_out, tokenizer, vocabulary, val_rows)
    _check_enough(data, streams, seq_len, batch_size)
    return streams


def open_to_predict(
    path: str, data: DataConfig, recipe: Recipe, seq_len: int, tokenizer: str, labels: Sequence[str]
) -> LabelledRows:
    """Open all rows of a file to predict their labels, by a model with this tokenizer and these names of labels.

    Raises:
        UserError: they can't be read, or have labels that the model doesn't know.
    """
    task = recipe.task(seq_len)
    assert task is not None
    corpus, rows = open_rows(path, task.to_predict(), tokenizer, labels, data, cache_folder(data))
    vocabulary = _vocabulary(recipe.special_tokens(seq_len), tokenizer, tuple(labels))
    assert vocabulary is not None
    window_len = recipe.window_len(seq_len, vocabulary)
    source = _source(Part("", corpus, windows.whole(corpus)), data, window_len, window_len, 0, cache_folder(data))
    stream = Stream([source], Mixture((Stage(0, (1,)),)), window_len, corpus.vocab_size, False)
    places = stream.places_of(0, np.arange(stream.num_windows))
    return LabelledRows(stream, places, (rows,), recipe, vocabulary)


def _parts(names: list[str], corpora: list[Corpus], val: Corpus | None, least: int) -> tuple[list[Part], list[Part]]:
    """List what is trained on and what is held out: a corpus of its own, or at least `least` tokens of each corpus."""
    if val is not None:
        train = [Part(name, corpus, windows.whole(corpus)) for name, corpus in zip(names, corpora, strict=True)]
        return train, [Part("", val, windows.whole(val))]
    train, held_out = [], []
    for name, corpus in zip(names, corpora, strict=True):
        regions, rest = windows.by_split(corpus) if corpus.labelled else windows.split(corpus, least)
        train.append(Part(name, corpus, regions))
        held_out.append(Part(name, corpus, rest))
    return train, held_out


def _source(part: Part, data: DataConfig, window_len: int, stride: int, seed: int, cache_dir: Path) -> StreamSource:
    """Cut or pack one part into windows, and shuffle them."""
    name, corpus, regions = part
    if not corpus.num_documents and (data.document_mask or data.packing == "best_fit"):
        raise UserError(
            f"{name or data.train}: does not say where its documents end, as --data.document_mask and --data.packing "
            f"best_fit need; give the id that ends them: --data.end_id N"
        )
    cut: Cut | Packed | Whole = Cut(regions, window_len, stride)
    if corpus.labelled:
        cut = Whole(regions, window_len)
    elif data.packing == "best_fit":
        cut = pack(corpus, regions, window_len, stride, cache_dir)
    block = data.block_shards or (REMOTE_BLOCK_SHARDS if corpus.is_remote else None)
    return StreamSource(name, corpus, regions, cut, Order(cut.num_windows, (seed, "order", name), block))


def _vocabulary(
    special_tokens: SpecialTokens | None, tokenizer: str | None, labels: tuple[str, ...]
) -> Vocabulary | None:
    if special_tokens is None:
        return None
    if tokenizer is None:
        why = "the corpus is ids without a tokenizer, and this objective needs one for its special tokens"
        raise UserError(f"{why}; give --data.tokenizer")
    return replace(vocabulary_of(extended(tokenizers.load(tokenizer), special_tokens)), labels=labels)


def _mixture(
    data: DataConfig, sources: list[SourceConfig], names: list[str], corpora: list[Corpus], seq_len: int
) -> Mixture:
    sizes = [corpus.num_tokens for corpus in corpora]
    stages = [(0, [source.weight for source in sources])]
    for stage in data.stages or []:
        for name in stage.weights:
            if name not in names:
                others = f"{nearest(name, names)}; there are {', '.join(names)}"
                raise UserError(f"--data.stages: there is no source {name}{others}")
        if (position := -(-stage.at_tokens // seq_len)) <= stages[-1][0]:
            wrong = f"at_tokens {stage.at_tokens} does not come after the stage before it"
            raise UserError(f"--data.stages: {wrong}; order them by at_tokens, the first above 0")
        stages.append((position, [stage.weights.get(name, 0) for name in names]))
    return Mixture(tuple(Stage(position, parse_weights(weights, sizes)) for position, weights in stages))


def _check_enough(data: DataConfig, streams: Streams, seq_len: int, batch_size: int) -> None:
    train = streams.train
    if train.sources[0].corpus.labelled:
        _check_enough_rows(data, train, batch_size)
        return
    least = 1 if len(train.sources) > 1 else batch_size
    for number, source in enumerate(train.sources):
        asked = any(stage.weights[number] for stage in train.mixture.stages)
        if asked and source.num_windows < least:
            has = plural(source.corpus.num_tokens, "token", exact=True)
            needed = "a training sequence takes" if least == 1 else "one step takes"
            sizes = f"{least * seq_len:,} (--seq_len {seq_len}" + (f" x --batch_size {least})" if least > 1 else ")")
            held_out = "" if data.val is not None else ", with as many held out to validate on"
            raise UserError(
                f"{source.name or data.train or 'the corpus'}: this text is too short: it has {has}, and {needed} "
                f"{sizes}{held_out}; give more text, or lower --batch_size or --seq_len"
            )
    if streams.val.num_windows == 0:
        raise UserError(
            f"{data.val or 'the held-out part of the text'}: too short to validate on: it has less than one sequence "
            f"of {seq_len} tokens; give more text, or lower --seq_len"
        )


def _check_enough_rows(data: DataConfig, train: Stream, batch_size: int) -> None:
    if train.num_windows < batch_size:
        has = f"has {plural(train.num_windows, 'labelled example', exact=True)} to train on"
        raise UserError(
            f"{data.train or 'the data'}: {has}, and one step takes {batch_size} (--batch_size {batch_size}); give "
            f"more rows, or lower --batch_size"
        )
