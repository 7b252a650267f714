"""Work that several processes share, so that what comes of it does not depend on how many they are.

Every process makes the same list of pieces of work, does its own of them, and gets all results, in order.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sslm.system.collectives import Group, gather_json
from sslm.system.errors import RunFailed

Piece = TypeVar("Piece")
PIECES_AT_ONCE = 4
"""Pieces that each process does before they meet: they take unequal time."""


class Processes(NamedTuple):
    """Those that share the work, and which of them this is."""

    rank: int = 0
    num: int = 1
    group: Group = None


ALONE = Processes()


def shared(pieces: Iterable[Piece], work: Callable[[Piece], Any], processes: Processes) -> Iterator[tuple[Piece, Any]]:
    """Do each piece in one process; yield every piece with its result, in order.

    Args:
        pieces: the same in every process.
        work: gives what JSON can hold; numbers come back as they were, to the last bit.
    """
    if processes.num == 1:
        for piece in pieces:
            yield piece, work(piece)
        return
    pieces = iter(pieces)
    while some := list(islice(pieces, PIECES_AT_ONCE * processes.num)):
        mine = [work(piece) for piece in some[processes.rank :: processes.num]]
        try:
            results = gather_json(mine, processes.group)
        except RuntimeError as error:  # its connection is closed
            raise RunFailed("another process of this command has ended; run the same command again") from error
        for number, piece in enumerate(some):
            yield piece, results[number % processes.num][number // processes.num]
