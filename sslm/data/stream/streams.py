"""The two streams of a run, to train on and to validate on: corpora opened, split, cut or packed, shuffled and mixed.

SpecialTokens neither Lightning nor, where the corpora are prepared, transformers: whoever writes a training loop of their own gets
its batches so:

    streams = open_streams(DataConfig(train="corpus"), recipe, seq_len=1024, batch_size=16)
    for batch in Loader(TrainSteps(streams.train, recipe, batch_size=16, seed=0), first=0, end=1000):
        batch["tensors"]["input_ids"], batch["tensors"]["labels"]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import platformdirs

from sslm.config import DataConfig, SourceConfig
from sslm.data.corpora import open_corpora
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.shards import Corpus
from sslm.data.stream import windows
from sslm.data.stream.mixture import Mixture, Stage, parse_weights, source_names
from sslm.data.stream.order import Order
from sslm.data.stream.packing import Packed, pack
from sslm.data.stream.recipe import Recipe
from sslm.data.stream.stream import Stream, StreamSource
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.data.stream.windows import Cut, Region
from sslm.system.errors import UserError, nearest
from sslm.system.terminal import say

REMOTE_BLOCK_SHARDS = 4
"""Shards of a remote corpus that are shuffled together, unless said otherwise."""


class Streams(NamedTuple):
    """What `open_streams` gives."""

    train: Stream
    val: Stream
    tokenizer: str | None
    """Where the tokenizer is that made the ids; None: they came without one."""
    vocabulary: Vocabulary | None
    """What the recipe gets of it, with what it needs added."""


def cache_folder(data: DataConfig) -> Path:
    """Where what is made of a corpus is kept."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else platformdirs.user_cache_path("sslm")


def open_streams(
    data: DataConfig, recipe: Recipe, *, seq_len: int, batch_size: int, seed: int = 0, tokenizer: str | None = None
) -> Streams:
    """Prepare what is not prepared yet, and open it. Any number of processes may call at once.

    Args:
        recipe: the objective's pure part: how long a window is.
        seq_len: tokens per sequence.
        batch_size: sequences per optimizer step, over all devices.
        seed: of the order.
        tokenizer: used where `data.tokenizer` names none.

    Raises:
        UserError: bad text, a tokenizer that does not match, less text than one batch.
    """
    if data.document_mask and not recipe.keeps_documents:
        raise UserError(
            f"--data.document_mask true: {type(recipe).__name__.removesuffix('Recipe')}'s noise goes across documents, as its paper's "
            f"does; leave the flag out"
        )
    cache_dir = cache_folder(data)
    given = data.sources or [SourceConfig(path=data.train, name="")]
    names = source_names(given)
    with_val = given if data.val is None else [*given, SourceConfig(data.val)]
    corpora, tokenizer = open_corpora(with_val, data.tokenizer or tokenizer, data, cache_dir)
    vocabulary = _vocabulary(recipe.special_tokens(seq_len), tokenizer)
    window_len, stride = recipe.window_len(seq_len, vocabulary), recipe.stride(seq_len, vocabulary)

    def source(name: str, corpus: Corpus, regions: list[Region]) -> StreamSource:
        if not corpus.num_documents and (data.document_mask or data.packing == "best_fit"):
            raise UserError(
                f"{name or data.train}: does not say where its documents end, as --data.document_mask and --data.packing "
                f"best_fit need; give the id that ends them: --data.end_id N"
            )
        how: Cut | Packed = Cut(regions, window_len, stride)
        if data.packing == "best_fit":
            how = pack(corpus, regions, window_len, stride, cache_dir, say)
        block = data.block_shards or (REMOTE_BLOCK_SHARDS if corpus.is_remote else None)
        return StreamSource(name, corpus, regions, how, Order(how.num_windows, (seed, "order", name), block))

    def stream(parts: Sequence[tuple[str, Corpus, list[Region]]]) -> Stream:
        sources = [source(*part) for part in parts]
        largest = max(corpus.vocab_size for _, corpus, _ in parts)
        return Stream(sources, mixture, window_len, largest, data.document_mask)

    val = corpora.pop() if data.val is not None else None
    mixture = _mixture(data, given, names, corpora, seq_len)
    if val is not None:
        train_regions, held_out = [windows.whole(corpus) for corpus in corpora], [("", val, windows.whole(val))]
    else:
        least = max(batch_size // len(corpora), 1) * window_len
        splits = [windows.split(corpus, least) for corpus in corpora]
        train_regions = [regions for regions, _ in splits]
        held_out = [(name, corpus, split[1]) for name, corpus, split in zip(names, corpora, splits, strict=True)]
    training = list(zip(names, corpora, train_regions, strict=True))
    streams = Streams(stream(training), stream(held_out), tokenizer, vocabulary)
    _check_enough(data, streams, seq_len, batch_size)
    return streams


def _vocabulary(needs: SpecialTokens | None, tokenizer: str | None) -> Vocabulary | None:
    if needs is None:
        return None
    if tokenizer is None:
        raise UserError(
            "the corpus is ids without a tokenizer, and this objective needs one for its special tokens; give "
            "--data.tokenizer"
        )
    return vocabulary_of(extended(tokenizers.load(tokenizer), needs))


def _mixture(
    data: DataConfig, given: list[SourceConfig], names: list[str], corpora: list[Corpus], seq_len: int
) -> Mixture:
    sizes = [corpus.num_tokens for corpus in corpora]
    stages = [(0, [source.weight for source in given])]
    for stage in data.stages or []:
        for name in stage.weights:
            if name not in names:
                raise UserError(
                    f"--data.stages: there is no source {name}{nearest(name, names)}; there are {', '.join(names)}"
                )
        if (position := -(-stage.at_tokens // seq_len)) <= stages[-1][0]:
            raise UserError(
                f"--data.stages: at_tokens {stage.at_tokens} does not come after the stage before it; order them by at_tokens, "
                f"the first above 0"
            )
        stages.append((position, [stage.weights.get(name, 0) for name in names]))
    return Mixture(tuple(Stage(position, parse_weights(weights, sizes)) for position, weights in stages))


def _check_enough(data: DataConfig, streams: Streams, seq_len: int, batch_size: int) -> None:
    train = streams.train
    least = 1 if len(train.sources) > 1 else batch_size
    for number, source in enumerate(train.sources):
        asked = any(stage.weights[number] for stage in train.mixture.stages)
        if asked and source.num_windows < least:
            less = f", less than one batch of {least}" if least > 1 else ""
            raise UserError(
                f"{source.name or data.train or 'the corpus'}: {source.corpus.num_tokens} tokens give {source.num_windows} "
                f"training sequences{less}; bring more text, or lower --batch_size or --seq_len"
            )
    if streams.val.num_windows == 0:
        raise UserError(f"{data.val or 'held-out text'}: less than one sequence of {seq_len} tokens to validate on")
