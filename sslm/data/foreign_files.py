"""Files of token ids that other tools wrote, each read the same way: in chunks, with the ends of documents.

    megatron   NAME.bin + NAME.idx, Megatron-Core's indexed dataset, version 1: the .idx says where sequences and documents lie
    llm.c      .bin with a header of 256 int32 (magic, version, number of ids), as of llm.c and modded-nanogpt
    nanogpt    .bin of uint16 ids and nothing else
    npy        .npy of whole numbers: [n] is one document, [n, len] is n of them
    parquet    a column of lists of whole numbers: a row is a document

Where a file itself does not tell its documents apart (llm.c, nanogpt, npy), an end-of-document id can.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslm.errors import UserError

CHUNK_TOKENS = 1 << 22

Chunk = tuple[NDArray[Any], NDArray[np.int64]]
"""(ids, offsets within them just after documents that end there)"""

LLM_C_VERSIONS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Magic -> (version, type of the ids)."""
LLM_C_EVALUATION = 20240522
IDS_COLUMNS = ("input_ids", "tokens", "ids")
"""Columns of a Parquet file that are taken for ids, if the user names none."""


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


def open_nanogpt(path: Path, end_id: int | None) -> TokenFile:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: is empty; expected uint16 token ids")
    if size % 2:
        raise UserError(
            f"{path}: {size} bytes, an odd number; expected uint16 token ids, so it is cut off or no such file"
        )
    some = np.frombuffer(first_bytes(path, min(size, 1 << 16) & ~3), "<u2").reshape(-1, 2)
    if len(some) >= 64 and some[:, 1].max() <= 3 and some[:, 0].max() >= 256:
        raise UserError(f"{path}: its ids look like 32 or 64 bits each, and a .bin without a header is read as uint16; "
                        f"save them as .npy")  # fmt: skip
    return _in_one_piece(path, InOnePiece(np.dtype("<u2"), 0, size // 2), _after(end_id))


def is_llm_c(path: Path) -> bool:
    """Whether a .bin has a header as llm.c writes it: a magic that is known, or counts that fit the file's size."""
    head = first_bytes(path, 1024)
    magic, _, num_tokens = struct.unpack("<3i", head[:12]) if len(head) >= 12 else (0, 0, 0)
    is_known = magic in (*LLM_C_VERSIONS, LLM_C_EVALUATION)
    return is_known or (num_tokens > 0 and path.stat().st_size in (1024 + 2 * num_tokens, 1024 + 4 * num_tokens))


def open_llm_c(path: Path, end_id: int | None) -> TokenFile:
    head = first_bytes(path, 1024)
    if len(head) < 1024:
        raise UserError(f"{path}: ends within its header of 1024 bytes; it is cut off, copy it again")
    magic, version, num_tokens = struct.unpack("<3i", head[:12])
    if magic not in LLM_C_VERSIONS:
        what = "llm.c's evaluation examples" if magic == LLM_C_EVALUATION else f"a file of magic {magic}"
        raise UserError(f"{path}: is {what}, no shard of ids; those have magic {' or '.join(map(str, LLM_C_VERSIONS))}")
    known, dtype = LLM_C_VERSIONS[magic]
    if version != known:
        raise UserError(f"{path}: is version {version} of magic {magic}; only version {known} is known")
    piece = InOnePiece(np.dtype(dtype), 1024, num_tokens)
    _check_size(path, 1024 + num_tokens * piece.dtype.itemsize)
    return _in_one_piece(path, piece, _after(end_id))


def open_npy(path: Path, end_id: int | None) -> TokenFile:
    shape, by_column, dtype, offset = _npy_header(path)
    if dtype.kind not in "ui":
        raise UserError(f"{path}: holds {dtype}, not whole numbers; save ids as an integer type, such as uint16")
    if len(shape) not in (1, 2):
        raise UserError(
            f"{path}: has {len(shape)} dimensions; expected ids as [n] (a document) or [n, len] (n of them)"
        )
    piece = InOnePiece(dtype, offset, math.prod(shape))
    _check_size(path, offset + piece.num_tokens * dtype.itemsize)
    if len(shape) == 1:
        return _in_one_piece(path, piece, _after(end_id, *shape))
    if by_column and min(shape) > 1:
        return TokenFile(path, lambda: _rows(path))
    return _in_one_piece(path, piece, _every(shape[1], shape[0]))


def _npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether columns are contiguous, type, bytes before the first number). Nothing is unpickled."""
    header = np.lib.format
    try:
        with open(path, "rb") as stream:
            read = header.read_array_header_1_0 if header.read_magic(stream) == (1, 0) else header.read_array_header_2_0
            return *read(stream), stream.tell()
    except ValueError as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: no .npy of whole numbers, or a damaged one ({why})") from None


def _in_one_piece(path: Path, piece: InOnePiece, ends: EndsWithin) -> TokenFile:
    def chunks() -> Iterator[Chunk]:
        if piece.num_tokens == 0:
            yield np.empty(0, piece.dtype), ends(0, np.empty(0, piece.dtype))
        with open(path, "rb") as stream:
            stream.seek(piece.offset)
            for start in range(0, piece.num_tokens, CHUNK_TOKENS):
                ids = take(stream, piece.dtype, min(CHUNK_TOKENS, piece.num_tokens - start))
                yield ids, ends(start, ids)

    return TokenFile(path, chunks, piece)


def _after(end_id: int | None, file_ends_at: int | None = None) -> EndsWithin:
    """Documents end with `end_id`, and with the file if its length is given."""

    def ends(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        found = np.empty(0, np.int64) if end_id is None else np.flatnonzero(ids == end_id) + 1
        if start + len(ids) == file_ends_at and (len(found) == 0 or found[-1] != len(ids)):
            found = np.append(found, len(ids))
        return found

    return ends


def _every(length: int, num_rows: int) -> EndsWithin:
    def ends(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.arange(length - start % length, len(ids) + 1, length) if length else np.zeros(num_rows, np.int64)

    return ends


def _rows(path: Path) -> Iterator[Chunk]:
    """[n, len] ids that lie column by column."""
    array = np.lib.format.open_memmap(path, mode="r")
    num_rows, length = array.shape
    some = max(CHUNK_TOKENS // max(length, 1), 1)
    for row in range(0, num_rows, some):
        ids = np.ascontiguousarray(array[row : row + some])
        yield ids.reshape(-1), np.arange(1, len(ids) + 1) * length


def take(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The next ids. Read, not mapped: mapped pages would count as this process's memory."""
    ids = np.fromfile(stream, dtype, count)
    if len(ids) != count:
        raise UserError(f"{stream.name}: got shorter while it was read; run again when it is complete")
    return ids


def first_bytes(path: Path, num_bytes: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(num_bytes)


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        state = "cut off" if size < expected else "longer than that"
        raise UserError(
            f"{path}: its header speaks of {expected} bytes and it has {size}: it is {state}, copy it again"
        )


# ------------------------------------------------------------------------------------------------ Parquet


def ids_column(schema: Any, text_field: str) -> str | None:
    """The column that holds lists of numbers: the one the user named, if it is there, or the first of the usual ones."""
    wanted = (text_field,) if text_field in schema.names else IDS_COLUMNS
    return next(
        (name for name in wanted if name in schema.names and _is_list_of_numbers(schema.field(name).type)), None
    )


def _is_list_of_numbers(kind: Any) -> bool:
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list) and bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))


def open_parquet(path: Path, text_field: str) -> TokenFile:
    import pyarrow.types as types

    with parquet_file(path) as table:
        schema = table.schema_arrow
    column = ids_column(schema, text_field)
    if column is None:
        names = ", ".join(dict.fromkeys([text_field, *IDS_COLUMNS]))
        raise UserError(f"{path}: has no column of lists of ids named {names}; it has {', '.join(schema.names) or 'none'}; "
                        f"choose one with --data.text_field")  # fmt: skip
    kind = schema.field(column).type
    if not types.is_integer(kind.value_type):
        raise UserError(f"{path}: column {column!r} holds {kind}, not lists of whole numbers; "
                        f"choose another with --data.text_field")  # fmt: skip
    return TokenFile(path, lambda: _parquet_chunks(path, column))


def parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one ({' '.join(str(error).split())[:160]})"
        ) from None


def _parquet_chunks(path: Path, column: str) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.compute

    row = 0
    with parquet_file(path) as table:
        try:
            for batch in table.iter_batches(batch_size=_rows_at_once(table, column), columns=[column]):
                lists = batch.column(0)
                ids = lists.flatten()
                if lists.null_count or ids.null_count:
                    raise UserError(f"{path}: column {column!r} has null in rows {row} to {row + len(lists)}; "
                                    f"drop these rows, or fill in their ids")  # fmt: skip
                lengths = pyarrow.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
                yield ids.to_numpy(zero_copy_only=False), np.cumsum(lengths, dtype=np.int64)
                row += len(lists)
        except (pyarrow.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None):
                raise
            raise UserError(
                f"{path}: can't be read, it may be damaged ({' '.join(str(error).split())[:160]})"
            ) from None


def _rows_at_once(table: Any, column: str) -> int:
    """Rows with about CHUNK_TOKENS ids between them."""
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    if not groups:
        return 1
    number = next(i for i in range(groups[0].num_columns) if groups[0].column(i).path_in_schema.split(".")[0] == column)
    num_values = sum(group.column(number).num_values for group in groups)
    return int(min(max(CHUNK_TOKENS * table.metadata.num_rows // max(num_values, 1), 1), 1 << 16))
