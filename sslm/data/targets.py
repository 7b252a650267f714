"""What there is to predict, counted before a run: whether there is anything, and what a token of it is worth."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.tokenizer import Tokenizer
from sslm.data.stream.batches import Batch
from sslm.data.stream.recipe import IGNORED, Recipe, is_target
from sslm.data.stream.stream import StreamSource
from sslm.data.stream.vocabulary import text_bytes
from sslm.system.errors import UserError

Counts = NDArray[np.int64]
"""[vocab_size] how often each id is a target."""


def check_targets(batches: Iterable[Batch], recipe: Recipe, which: str) -> None:
    """Look for a batch that has any target.

    Raises:
        UserError: there is none; `which` is what the sentence calls these sequences.
    """
    if not any("bad" in batch or is_target(batch["tensors"]["labels"]).any() for batch in batches):
        raise nothing_in(which, recipe)


def nothing_in(which: str, recipe: Recipe) -> UserError:
    """The error for sequences in which a recipe finds no target."""
    what = f"{type(recipe).__name__.removesuffix('Recipe')} finds nothing to predict in the {which} sequences"
    why = "documents of one token, or special tokens alone; give other text"
    if recipe.moves_words:
        why = "its words are longer than what it may hide of a sequence; type --objective.unit token"
    return UserError(f"{what}: {why}")


def count_targets(batches: Iterable[Batch], vocab_size: int) -> Counts:
    """Count targets; what stands in bad shards is left out, and the run itself will tell of it."""
    counts = np.zeros(vocab_size, np.int64)
    for batch in batches:
        if "bad" not in batch:
            labels = batch["tensors"]["labels"]
            counts += np.bincount(labels[labels != IGNORED], minlength=len(counts))
    return counts


def unigram_loss(held_out: Counts, seen: Counts) -> float:
    """Loss in nats of a model that knows nothing but how often each target was seen, and one more of each entry."""
    return float(-(held_out * np.log((seen + 1) / (seen + 1).sum())).sum() / held_out.sum())


def bytes_per_target(held_out: Counts, tokenizer: Tokenizer, sources: Sequence[StreamSource]) -> float:
    """Count the bytes of text, in UTF-8, that a held-out target stands for on average.

    A token counts the bytes that its entry stands for. Where the tokenizer loses some of the text (unknown words,
    capitals, white space), an unknown token counts what the text has more on average, and all are scaled to the bytes
    that the held-out shards had before they were tokenised.
    """
    table, is_exact = text_bytes(tokenizer)
    if not is_exact:
        table = _scaled(table, tokenizer.unk_token_id, sources)
    return float(table @ held_out / held_out.sum())


def _scaled(table: NDArray[np.float64], unknown: int | None, sources: Sequence[StreamSource]) -> NDArray[np.float64]:
    """Scale bytes per id to those of the text, as far as the shards tell."""
    counts, num_bytes = np.zeros(len(table)), 0
    for source in sources:
        for shard in {region.shard for region in source.regions if region.shard.num_bytes}:
            counts += np.bincount(source.corpus.tokens(shard), minlength=len(table))
            num_bytes += shard.num_bytes
    missing = num_bytes - table @ counts
    if unknown is not None and counts[unknown] and missing > 0:
        table[unknown] = missing / counts[unknown]
    known = table @ counts
    return table * (num_bytes / known) if known and num_bytes else table
