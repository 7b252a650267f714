"""NumPy's files, .npy of integers: [n] is one document, [n, len] is n documents."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.foreign import files
from sslm.system.errors import UserError, one_line


def recognises(path: Path, options: files.Options) -> Path | None:
    return path if path.suffix.lower() == ".npy" else None


def open_tokens(path: Path, options: files.Options) -> files.TokenFile:
    shape, by_column, dtype, offset = _npy_header(path)
    if dtype.kind not in "ui":
        raise UserError(f"{path}: holds {dtype}, not whole numbers; save ids as an integer type, such as uint16")
    if len(shape) not in (1, 2):
        raise UserError(f"{path}: has {len(shape)} dimensions; expected [n] ids (a document) or [n, len] (n of them)")
    piece = files.InOnePiece(dtype, offset, math.prod(shape))
    files.check_size(path, offset + piece.num_tokens * dtype.itemsize)
    if len(shape) == 1:
        return files.in_one_piece(path, piece, files.after(options.end_id, *shape))
    if by_column and min(shape) > 1:
        return files.TokenFile(path, lambda: _rows(path))
    return files.in_one_piece(path, piece, _every(shape[1], shape[0]))


def _npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read (shape, whether columns are contiguous, dtype, bytes before the first number); nothing is unpickled."""
    header = np.lib.format
    try:
        with open(path, "rb") as stream:
            read = header.read_array_header_1_0 if header.read_magic(stream) == (1, 0) else header.read_array_header_2_0
            return *read(stream), stream.tell()
    except ValueError as error:
        raise UserError(f"{path}: no .npy of whole numbers, or a damaged one ({one_line(error)})") from None


def _every(length: int, num_rows: int) -> files.EndsWithin:
    def ends(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.arange(length - start % length, len(ids) + 1, length) if length else np.zeros(num_rows, np.int64)

    return ends


def _rows(path: Path) -> Iterator[files.Chunk]:
    """Read [n, len] ids that lie column by column."""
    array = np.lib.format.open_memmap(path, mode="r")
    num_rows, length = array.shape
    some = max(files.CHUNK_TOKENS // max(length, 1), 1)
    for row in range(0, num_rows, some):
        ids = np.ascontiguousarray(array[row : row + some])
        yield ids.reshape(-1), np.arange(1, len(ids) + 1) * length
