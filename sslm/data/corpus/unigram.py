"""Unigram (Kudo 2018, arXiv:1804.10959), trained the same way each time: counts are whole numbers.

A text's tokens are its most probable pieces. There are too many at first, those of a larger BPE; a quarter is dropped
at a time, without which the text's probability falls least, and the others' probabilities are counted anew: in the best
segmentation (hard EM), where SentencePiece has expected counts.
"""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

KEPT = 0.75
"""Share of the pieces that stay when some are dropped."""
ROUNDS = 2
"""How often probabilities are counted anew before that."""
AT_ONCE = 1 << 16
"""Words to encode together."""
LONGEST = 32
"""Characters of the longest piece."""
UNSEEN = 0.5
"""What a piece counts that is in no segmentation."""

Scores = dict[str, float]
"""Piece -> logarithm of its probability."""


def train_unigram(words: Counter[str], seeds: Iterable[str], size: int) -> list[tuple[str, float]]:
    """Choose at most `size` pieces among the seeds: each with its score, the most probable first.

    Args:
        words: word -> how often it stands in the text; all of its characters are seeds.
    """
    texts, counts = list(words), np.array([*words.values()], np.float64)
    scores = _log(_occurrences(words, {seed for seed in seeds if len(seed) <= LONGEST}))
    while True:
        for _ in range(ROUNDS):
            found = _counted(scores, texts, counts)
            scores = _log(found)
        if len(scores) <= size:
            return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        scores = _best(scores, found, max(size, int(KEPT * len(scores))))


def _log(counts: dict[str, float]) -> Scores:
    total = sum(max(count, UNSEEN) for count in counts.values())
    return {piece: math.log(max(count, UNSEEN) / total) for piece, count in counts.items()}


def _occurrences(words: Counter[str], seeds: set[str]) -> dict[str, float]:
    """Count each seed's characters in all places where it stands, as SentencePiece weighs its seeds."""
    found = dict.fromkeys(sorted(seeds), 0.0)
    longest = max(map(len, seeds))
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                piece = word[start:end]
                if piece in found:
                    found[piece] += count * (end - start)
    return found


def _counted(scores: Scores, texts: list[str], counts: NDArray[np.float64]) -> dict[str, float]:
    """Count each piece in the most probable segmentation of all words."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import Unigram

    pieces = list(scores)
    backend = Backend(Unigram([("", 0.0), *scores.items()], 0, False))
    found = np.zeros(len(pieces) + 1)
    for first in range(0, len(texts), AT_ONCE):
        ids = [encoded.ids for encoded in backend.encode_batch_fast(texts[first : first + AT_ONCE])]
        repeated = np.repeat(counts[first : first + AT_ONCE], [len(row) for row in ids])
        found += np.bincount(np.concatenate([np.array(row, np.int64) for row in ids]), repeated, len(found))
    return dict(zip(pieces, found[1:].tolist(), strict=True))


def _best(scores: Scores, found: dict[str, float], size: int) -> Scores:
    """Keep the pieces without which the text's probability falls most, and all characters."""
    loss = {
        piece: math.inf if len(piece) == 1 else found[piece] * (score - _without(piece, scores))
        for piece, score in scores.items()
    }
    kept = sorted(scores, key=lambda piece: (-loss[piece], piece))[:size]
    return {piece: scores[piece] for piece in kept}


def _without(piece: str, scores: Scores) -> float:
    """Score of the best way to write a piece by others."""
    best = [0.0]
    for end in range(1, len(piece) + 1):
        starts = range(1 if end == len(piece) else 0, end)
        best.append(max(best[start] + scores.get(piece[start:end], -math.inf) for start in starts))
    return best[-1]
