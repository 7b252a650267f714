"""Files of token ids that other tools wrote, each read the same way: in chunks, with the ends of documents.

    megatron   NAME.bin + NAME.idx, Megatron-Core's indexed dataset, version 1: the .idx says where sequences and documents lie
    llm.c      .bin with a header of 256 int32 (magic, version, number of ids), as of llm.c and modded-nanogpt
    nanogpt    .bin of uint16 ids and nothing else
    npy        .npy of whole numbers: [n] is one document, [n, len] is n of them
    parquet    a column of lists of whole numbers: a row is a document

Where a file itself does not tell its documents apart (llm.c, nanogpt, npy), an end-of-document id can.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslm.system.errors import UserError

CHUNK_TOKENS = 1 << 22

Chunk = tuple[NDArray[Any], NDArray[np.int64]]
"""(ids, offsets within them just after documents that end there)"""


@dataclass(frozen=True)
class InOnePiece:
    """Ids that lie one after the other to the end of their file, as a memory map needs them."""

    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first."""
    num_tokens: int

    @property
    def mapped_dtype(self) -> str | None:
        """uint16 or uint32, if ids can be viewed as such: those of a signed type are not negative."""
        fits = self.dtype.itemsize in (2, 4) and self.dtype.isnative
        return f"uint{self.dtype.itemsize * 8}" if fits else None


@dataclass(frozen=True)
class TokenFile:
    """One file of ids."""

    path: Path
    chunks: Callable[[], Iterator[Chunk]]
    """All of its ids, in order, in flat memory."""
    piece: InOnePiece | None = None


# ------------------------------------------------------------------------------------------------ ids in one piece

EndsWithin = Callable[[int, NDArray[Any]], NDArray[np.int64]]
"""(offset of these ids in the file, ids) -> offsets within them just after documents."""


def in_one_piece(path: Path, piece: InOnePiece, ends: EndsWithin) -> TokenFile:
    def chunks() -> Iterator[Chunk]:
        if piece.num_tokens == 0:
            yield np.empty(0, piece.dtype), ends(0, np.empty(0, piece.dtype))
        with open(path, "rb") as stream:
            stream.seek(piece.offset)
            for start in range(0, piece.num_tokens, CHUNK_TOKENS):
                ids = take(stream, piece.dtype, min(CHUNK_TOKENS, piece.num_tokens - start))
                yield ids, ends(start, ids)

    return TokenFile(path, chunks, piece)


def after(end_id: int | None, file_ends_at: int | None = None) -> EndsWithin:
    """Documents end with `end_id`, and with the file if its length is given."""

    def ends(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        found = np.empty(0, np.int64) if end_id is None else np.flatnonzero(ids == end_id) + 1
        if start + len(ids) == file_ends_at and (len(found) == 0 or found[-1] != len(ids)):
            found = np.append(found, len(ids))
        return found

    return ends


def take(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The next ids. Read, not mapped: mapped pages would count as this process's memory."""
    ids = np.fromfile(stream, dtype, count)
    if len(ids) != count:
        raise UserError(f"{stream.name}: got shorter while it was read; run again when it is complete")
    return ids


def first_bytes(path: Path, num_bytes: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(num_bytes)


def check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        state = "cut off" if size < expected else "longer than that"
        raise UserError(
            f"{path}: its header speaks of {expected} bytes and it has {size}: it is {state}, copy it again"
        )


# ------------------------------------------------------------------------------------------------ Parquet
