"""How much of a text stands in a training corpus: runs of 13 tokens that both have.

Brown et al. 2020 (GPT-3, arXiv:2005.14165, appendix C) call an example dirty if any of its 13-grams stands in the
training text; theirs are of words, these of tokens, so that corpora of ids are read as they are. Runs are compared by
64-bit hashes: of a billion, about one in 10^10 is taken for another by chance.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sslm.data.token_documents import TokenPiece
from sslm.system.random_words import mix64

N = 13
"""Tokens of a run."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


def hashes_of_runs(ids: NDArray[np.int64], n: int = N) -> Hashes:
    """[tokens − n + 1] hash of each run of n tokens; none if there are fewer.

    >>> [len(hashes_of_runs(np.arange(tokens))) for tokens in (12, 13, 20)]
    [0, 1, 8]
    """
    num = max(len(ids) - n + 1, 0)
    hashes, tokens = np.zeros(num, np.uint64), mix64(ids.astype(np.uint64))
    for place in range(n if num else 0):
        hashes = hashes * FACTOR + tokens[place : place + num]
    return mix64(hashes)


def runs(pieces: Iterable[TokenPiece], n: int = N) -> Iterator[tuple[int, Hashes]]:
    """Read (document, hashes of its runs), piece by piece: a run may begin in one piece and end in the next."""
    rest = np.empty(0, np.int64)
    for piece in pieces:
        ids = np.concatenate([rest, piece.ids])
        yield piece.document, hashes_of_runs(ids, n)
        rest = ids[:0] if piece.is_end else ids[max(len(ids) - n + 1, 0) :]


@dataclass
class Overlap:
    """Runs of some documents, and which of them a training corpus has."""

    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    """[runs]."""
    documents: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[runs] the document of each."""

    @classmethod
    def of(cls, pieces: Iterable[TokenPiece]) -> "Overlap":
        """Gather the runs of documents; those of less than N tokens have none."""
        gathered = [(np.full(len(hashes), document), hashes) for document, hashes in runs(pieces)]
        if not gathered:
            return cls()
        documents, hashes = (np.concatenate(column) for column in zip(*gathered, strict=True))
        return cls(hashes, documents)

    @property
    def num_documents(self) -> int:
        """Documents of at least N tokens."""
        return len(np.unique(self.documents))

    def dirty(self, found: Hashes) -> int:
        """Documents of which a run is among those found."""
        return len(np.unique(self.documents[np.isin(self.hashes, found)]))


def found_in(pieces: Iterable[TokenPiece], wanted: Hashes) -> Hashes:
    """Read a training corpus, and list those of the wanted runs that it has."""
    wanted = np.unique(wanted)
    is_there = np.zeros(len(wanted), bool)
    for _, hashes in runs(pieces):
        places = np.searchsorted(wanted, hashes)
        places[places == len(wanted)] = 0
        if len(wanted):
            is_there[places[wanted[places] == hashes]] = True
    return wanted[is_there]
