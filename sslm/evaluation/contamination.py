"""`--against`: how many documents of a text, or examples of a task, have a run of tokens that the training text has."""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np

from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, text_encoder
from sslm.data.overlap import N, Overlap, found_in
from sslm.data.token_documents import TokenDocuments, TokenPiece
from sslm.evaluation.scores import Scores
from sslm.models.standard_error import Estimate
from sslm.system.terminal import Progress, plural

CONTAMINATED = "contaminated"


def with_overlap(scores: list[Scores], overlaps: list[Overlap], training: list[TokenDocuments]) -> list[Scores]:
    """Put its contamination beside each score: the training text is read once for all."""
    wanted = np.unique(np.concatenate([overlap.hashes for overlap in overlaps]))
    found = np.concatenate([found_in(_watched(text), wanted) for text in training])
    return [_beside(one, overlap, overlap.dirty(found)) for one, overlap in zip(scores, overlaps, strict=True)]


def _beside(scores: Scores, overlap: Overlap, dirty: int) -> Scores:
    num = overlap.num_documents
    share = dirty / num if num else math.nan
    error = math.sqrt(share * (1 - share) / (num - 1)) if num > 1 else math.nan
    figures = {**scores.figures, CONTAMINATED: Estimate(share, error)}
    return replace(scores, figures=figures, counts={**scores.counts, f"with {N} tokens": num})


def _watched(text: TokenDocuments) -> Iterator[TokenPiece]:
    tokens = 0
    with closing(Progress()) as bar:
        for piece in text.pieces():
            yield piece
            tokens += len(piece.ids)
            share = min(tokens / text.num_tokens, 1.0) if text.num_tokens else None
            bar.show(f"Looking for runs of {N} tokens in {text.name}: {plural(tokens, 'token')}", share)


def pieces_of(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[TokenPiece]:
    """Tokenise examples of a task, each as a document."""
    ids_of = text_encoder(tokenizer, TokenRules())
    for number, text in enumerate(texts):
        [ids] = ids_of([text])
        yield TokenPiece(number, np.array(ids, np.int64), len(text.encode()), True)
