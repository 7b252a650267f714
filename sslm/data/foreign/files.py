"""What all formats of token files share: they are read in chunks of ids, with the ends of documents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.system.errors import UserError

CHUNK_TOKENS = 1 << 22

Chunk = tuple[NDArray[Any], NDArray[np.int64]]
"""(ids, offsets within them just after documents)"""
NOT_IDS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
"""First bytes of the .bin files of torch.save."""


class Options(NamedTuple):
    """How a user wants token files to be read."""

    end_id: int | None = None
    """Id that ends a document, in files that don't tell documents apart (llm.c, nanoGPT, .npy)."""
    text_field: str = "text"
    """Column to read in Parquet; without one of that name, one of the usual names."""


@dataclass(frozen=True)
class InOnePiece:
    """Ids that lie one after the other to the end of their file, so that they can be memory-mapped."""

    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first id."""
    num_tokens: int

    @property
    def mapped_dtype(self) -> str | None:
        """uint16 or uint32 if ids can be viewed as such (signed ids are checked not to be negative), or None."""
        return {2: "uint16", 4: "uint32"}.get(self.dtype.itemsize) if self.dtype.isnative else None


@dataclass(frozen=True)
class TokenFile:
    """One file of ids."""

    path: Path
    chunks: Callable[[], Iterator[Chunk]]
    """Reads all ids, in order, in flat memory."""
    piece: InOnePiece | None = None


EndsWithin = Callable[[int, NDArray[Any]], NDArray[np.int64]]
"""(offset of these ids in the file, ids) -> offsets within them just after documents."""


def in_one_piece(path: Path, piece: InOnePiece, ends: EndsWithin) -> TokenFile:
    """Describe a file whose ids lie in one piece."""

    def chunks() -> Iterator[Chunk]:
        with open(path, "rb") as stream:
            stream.seek(piece.offset)
            for start in range(0, max(piece.num_tokens, 1), CHUNK_TOKENS):  # without ids there may be empty documents
                ids = take(stream, piece.dtype, min(CHUNK_TOKENS, piece.num_tokens - start))
                yield ids, ends(start, ids)

    return TokenFile(path, chunks, piece)


def after(end_id: int | None, file_ends_at: int | None = None) -> EndsWithin:
    """Make a function that ends documents at `end_id`, and at the file's end if its number of ids is given."""

    def ends(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        found = np.empty(0, np.int64) if end_id is None else np.flatnonzero(ids == end_id) + 1
        if start + len(ids) == file_ends_at and (len(found) == 0 or found[-1] != len(ids)):
            found = np.append(found, len(ids))
        return found

    return ends


def take(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Read the next ids. They are not mapped: mapped pages would count as this process' memory."""
    ids = np.fromfile(stream, dtype, count)
    if len(ids) != count:
        raise UserError(f"{stream.name}: got shorter while it was read; run again when it is complete")
    return ids


def first_bytes(path: Path, num_bytes: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(num_bytes)


def begins_with(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    return first_bytes(path, max(map(len, beginnings))).startswith(beginnings)


def is_bin(path: Path) -> bool:
    """Whether a file is a .bin that torch did not write."""
    return path.suffix.lower() == ".bin" and not begins_with(path, NOT_IDS)


def check_size(path: Path, expected: int) -> None:
    """Raise UserError if a file is shorter or longer than its header says."""
    size = path.stat().st_size
    if size != expected:
        state = f"has {size}: it is {'cut off' if size < expected else 'longer than that'}"
        raise UserError(f"{path}: its header speaks of {expected} bytes and it {state}, copy it again")
