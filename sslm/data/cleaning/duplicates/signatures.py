"""What a block of texts tells of itself, to be compared with all others."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates.minhash import band_keys, runs_of
from sslm.data.cleaning.duplicates.settings import Deduplication
from sslm.data.cleaning.duplicates.words import words_of

Arrays = dict[str, NDArray[np.generic]]


def signatures(texts: Sequence[str], settings: Deduplication) -> Arrays:
    """Make what `resolve` compares of a block of texts, as they stand.

    Returns:
        settings: [] what the signatures were made with
        texts: [texts, 2] 128 bits of BLAKE2b: among 10^10 documents two differ and share them with probability 10^-19
        band-0, band-1 …: [texts] the key of each band
        lines: [lines] 64 bits of BLAKE2b for each line that is long enough; line_numbers: [lines] in its text;
        line_counts: [texts]
        passages: [runs] the hash of each run of words; passage_counts: [texts]
    """
    made: Arrays = {"settings": np.array(settings.fingerprint, np.uint64), "texts": _text_hashes(texts)}
    if "minhash" in settings.methods:
        keys = band_keys(words_of(texts, fold=True), settings)
        made |= {f"band-{number}": band for number, band in enumerate(keys)}
    if "lines" in settings.methods:
        made |= _lines(texts, settings.line_characters)
    if "substrings" in settings.methods:
        made["passages"], made["passage_counts"], _ = runs_of(words_of(texts, fold=False), settings.substring_words)
    return made


def _text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(_digest(text, 16) for text in texts)
    return np.frombuffer(digests, "<u8").reshape(len(texts), 2)


def _lines(texts: Sequence[str], characters: int) -> Arrays:
    digests: list[bytes] = []
    numbers: list[int] = []
    counts: list[int] = []
    for text in texts:
        before = len(numbers)
        for number, line in enumerate(text.split("\n")):
            if len(line := line.strip()) >= characters:
                digests.append(_digest(line, 8))
                numbers.append(number)
        counts.append(len(numbers) - before)
    return {
        "lines": np.frombuffer(b"".join(digests), "<u8"),
        "line_numbers": np.array(numbers, np.uint32),
        "line_counts": np.array(counts, np.int64),
    }


def _digest(text: str, num_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=num_bytes).digest()
