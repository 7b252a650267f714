"""Texts that models are evaluated on, kept out of a corpus: runs of 13 words, and short lines as a whole.

Brown et al. 2020 (GPT-3, arXiv:2005.14165, appendix C): words in lower case, without punctuation, runs of N = 13. Of
lines that are shorter, which would have no run, the whole line must be a line of the document. Words and runs are
compared by 64-bit hashes: of a billion, about one in 10^10 is taken for another by chance.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates.words import Hashes, Ints, words_of
from sslm.data.cleaning.work import written_whole
from sslm.data.overlap import FACTOR, N
from sslm.system.random_words import mix64

FEWEST_WORDS = 5
"""Words of a line, at least: shorter ones stand anywhere."""


class Runs(NamedTuple):
    """What is looked for in some texts."""

    hashes: Hashes
    """[runs]."""
    texts: Ints
    """[runs] the text of each."""


def runs_of(texts: Sequence[str]) -> Runs:
    """Hash all runs of N words of texts, and each line of FEWEST_WORDS to N − 1 words.

    >>> len(runs_of(["one two three four", "One, two, three, four, five.", " ".join("abcdefghijklmno")]).hashes)
    4
    """
    lines = [text.split("\n") for text in texts]
    words = words_of([line for some in lines for line in some], fold=True)
    of_line = np.repeat(np.arange(len(texts)), [len(some) for some in lines])
    of_word = np.repeat(of_line, words.counts)
    places = np.arange(max(len(words.hashes) - N + 1, 0))
    places = places[of_word[places] == of_word[places + N - 1]]
    hashes, owners = [_hashed(words.hashes, places, N)], [of_word[places]]
    first = np.cumsum(words.counts) - words.counts
    for n in range(FEWEST_WORDS, N):
        short = words.counts == n
        hashes.append(_hashed(words.hashes, first[short], n))
        owners.append(of_line[short])
    return Runs(np.concatenate(hashes), np.concatenate(owners))


def _hashed(words: Hashes, places: Ints, n: int) -> Hashes:
    """[places] hash of the n words from a place on, and of their number."""
    hashes = np.full(len(places), n, np.uint64)
    for offset in range(n):
        hashes = hashes * FACTOR + words[places + offset]
    return mix64(hashes)


@dataclass(frozen=True)
class Contamination:
    """What must not stand in a corpus, in a file."""

    file: str
    sha256: str
    """Of the sorted hashes."""
    names: tuple[str, ...]
    """Where the texts are from."""
    num_runs: int

    @classmethod
    def of(cls, texts: Iterable[tuple[str, Iterable[str]]], file: Path) -> "Contamination":
        """Gather runs of texts into a file.

        Args:
            texts: (name, texts) of each test set.
            file: what to write.
        """
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        names: list[str] = []
        for name, some in texts:
            for text in some:
                hashes.append(runs_of([text]).hashes)
                owners.append(np.full(len(hashes[-1]), len(names)))
            names.append(name)
        runs, at = np.unique(np.concatenate(hashes), return_index=True)
        arrays = {"runs": runs, "owners": np.concatenate(owners)[at]}
        written_whole(file, lambda part: _save(part, arrays))
        return cls(str(file), hashlib.sha256(runs.tobytes()).hexdigest(), tuple(names), len(runs))

    def found_in(self, texts: Sequence[str]) -> list[str | None]:
        """Name, for each text, the first test set that it has a run of; None if it has none."""
        wanted, owners = _arrays(self.file)
        found: list[str | None] = [None] * len(texts)
        if not len(wanted):
            return found
        hashes, of_text = runs_of(texts)
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        is_there = wanted[places] == hashes
        first = np.full(len(texts), len(self.names))
        np.minimum.at(first, of_text[is_there], owners[places[is_there]])
        for text in np.flatnonzero(first < len(self.names)).tolist():
            found[text] = self.names[first[text]]
        return found

    def written(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"of": list(self.names), "sha256": self.sha256, "words": N}


@functools.cache
def _arrays(file: str) -> tuple[Hashes, NDArray[np.int64]]:
    with np.load(file) as arrays:
        return arrays["runs"], arrays["owners"]


def _save(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with open(file, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
