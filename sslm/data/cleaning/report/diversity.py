"""How varied a text is: new words as it goes on, entropy of its n-grams, how far it compresses."""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

POINTS = 40
"""Points of a curve."""
COMMON_WORDS = 1_000
"""Words of a source's vocabulary that are compared, the most frequent."""


class Diversity(NamedTuple):
    """Figures of a sample of documents."""

    words: int
    types: int
    """Different words."""
    growth: list[tuple[int, int]]
    """(words read, different words met) at even steps: Heaps' curve."""
    entropy: dict[int, float]
    """n -> bits a word of the n-gram distribution's entropy rate: H(n) − H(n − 1); a small sample's are too low."""
    compression: float
    """Bytes of the text a byte of it compressed (DEFLATE); 1: it doesn't compress."""


def diversity(texts: Sequence[str]) -> Diversity:
    """Measure texts, one after the other, as they are given."""
    words = [word for text in texts for word in text.split()]
    every = max(len(words) // POINTS, 1)
    seen: set[str] = set()
    growth = [(0, 0)]
    for start in range(0, len(words), every):
        seen.update(words[start : start + every])
        growth.append((min(start + every, len(words)), len(seen)))
    return Diversity(len(words), len(seen), growth, _entropy(words), _compression(texts))


def _entropy(words: Sequence[str]) -> dict[int, float]:
    if len(words) < 3:
        return {}
    single = _bits(Counter(words).values())
    pair = _bits(Counter(pairwise(words)).values())
    triple = _bits(Counter(zip(words, words[1:], words[2:], strict=False)).values())
    return {1: single, 2: pair - single, 3: triple - pair}


def _bits(counts: Iterable[int]) -> float:
    counts = list(counts)
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)


def _compression(texts: Sequence[str]) -> float:
    raw = "\n".join(texts).encode()
    return len(raw) / max(len(zlib.compress(raw, 6)), 1)


def vocabulary_overlap(by_source: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
    """Compare the most frequent words of each two sources: words of both, as a share of those of either (Jaccard)."""
    common = {
        name: {word for word, _ in Counter(word for text in texts for word in text.split()).most_common(COMMON_WORDS)}
        for name, texts in by_source.items()
    }
    names = list(common)
    return {
        (a, b): len(common[a] & common[b]) / max(len(common[a] | common[b]), 1)
        for number, a in enumerate(names)
        for b in names[number + 1 :]
    }
