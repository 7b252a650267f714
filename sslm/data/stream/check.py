"""A recipe is tried on a few rows before anything is trained: what is past a row's end, or in another document, is
never scored. A recipe that forgets either learns from it without a word.
"""

import numpy as np

from sslm.data.stream.recipe import Arrays, Examples, Ints, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.system.errors import UserError

ROWS = 8
PAST_END = 2
"""Kind of token that stands past a row's end; kinds 0 and 1 are those of a row's two documents."""
MOST_KINDS = 3


def check_recipe(
    recipe: Recipe, seq_len: int, vocabulary: Vocabulary | None, vocab_size: int, *, padded: bool, documents: bool
) -> None:
    """Try a recipe on rows of two documents, each written in tokens of its own.

    Args:
        recipe: what is tried.
        seq_len: tokens per sequence.
        vocabulary: the tokenizer's tables, if the recipe takes any.
        vocab_size: number of ids, from which tokens are taken where there are no tables.
        padded: whether rows may be shorter than a window.
        documents: whether attention is to stay inside documents.

    Raises:
        UserError: a label is taken from past a row's end, or from another document.
    """
    ordinary = np.arange(vocab_size) if vocabulary is None else vocabulary.ordinary
    if len(ordinary) < MOST_KINDS:
        return
    kinds = np.full(vocab_size if vocabulary is None else vocabulary.size, -1)
    kinds[ordinary] = np.arange(len(ordinary)) % MOST_KINDS
    examples = _examples(recipe.window_len(seq_len, vocabulary), kinds, padded, documents)
    batch = recipe.make_batch(examples, vocabulary, 0)
    labels = batch["labels"]
    found = np.where(labels >= 0, kinds[np.maximum(labels, 0)], -1)
    name = type(recipe).__name__
    if padded and (found == PAST_END).any():
        raise UserError(f"{name}: scores what stands past a row's end; leave out where examples.is_token is false")
    if documents and ((found >= 0) & (found != _segments(batch, name))).any():
        raise UserError(f"{name}: a token of one document is to predict another's; compare examples.documents")


def _segments(batch: Arrays, name: str) -> Ints:
    """[n, target_len] the document of each place that a label is for."""
    segments: Ints | None = batch.get("decoder_segment_ids", batch.get("segment_ids"))
    if segments is None or segments.shape != batch["labels"].shape:
        raise UserError(f"{name}: keeps documents apart, so its batch needs segment_ids as long as its labels")
    return segments


def _examples(window_len: int, kinds: Ints, padded: bool, with_documents: bool) -> Examples:
    """Make rows of all lengths, cut into two documents at all places, each with tokens of its own kind."""
    lengths = np.linspace(min(2, window_len), window_len, ROWS).astype(np.int64)
    lengths = lengths if padded else np.full(ROWS, window_len)
    cuts = np.maximum(lengths * np.arange(1, ROWS + 1) // (ROWS + 1), 1)[:, None]
    places = np.arange(window_len)
    documents = np.where(places < cuts, 0, 1)
    wanted = np.where(places < lengths[:, None], documents, PAST_END)
    ids = np.stack([np.resize(np.flatnonzero(kinds == kind), window_len) for kind in range(MOST_KINDS)])
    return Examples(
        tokens=np.take_along_axis(ids, wanted, axis=0),
        positions=np.arange(ROWS),
        epochs=np.zeros(ROWS, np.int64),
        sources=np.zeros(ROWS, np.int64),
        lengths=lengths if padded else None,
        documents=np.where(wanted == PAST_END, -1, documents).astype(np.int32) if with_documents else None,
    )
