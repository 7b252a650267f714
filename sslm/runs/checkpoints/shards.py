"""Tensors of a checkpoint, wherever they lie: read and written some rows at a time.

A shard is a safetensors file: 8 bytes with the length of a JSON header, the header, the tensors' bytes one after the other
(github.com/huggingface/safetensors). What it holds of a tensor is a chunk; where the chunk begins in the tensor, the header says under
DCP_SHARDING_INFO (torch.distributed.checkpoint.hf_storage). Never more than BLOCK_BYTES, or a row, is in memory.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from sslm.runs.checkpoints.folder import UNREADABLE, shards_of
from sslm.system.errors import UserError
from sslm.system.terminal import printable

BLOCK_BYTES = 16 << 20
MOST_HEADER_BYTES = 100_000_000
"""safetensors reads no longer one either."""
MOST_DIMENSIONS = 64
"""torch has no tensor with more."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> integers with the same bits."""


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, row-major in a file from byte `at` on."""

    file: Path
    at: int
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor on the disk. A scalar counts as one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows [begin, end) -> [end - begin, *shape[1:]]."""
        dtype = DTYPES[self.dtype]
        rows = torch.empty((end - begin, *self.shape[1:]), dtype=BITS[dtype.itemsize])
        for chunk in self.chunks:
            first, *rest = chunk.offsets or (0,)
            here, to = max(begin, first), min(end, first + (chunk.shape or (1,))[0])
            if here < to:
                columns = (slice(o, o + n) for o, n in zip(rest, chunk.shape[1:], strict=True))
                rows[(slice(here - begin, to - begin), *columns)] = _read(
                    chunk, here - first, to - first, BITS[dtype.itemsize]
                )
        return rows.view(dtype)

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The rows [begin, end), as many at a time as BLOCK_BYTES hold."""
        if self.num_bytes:
            last = self.num_rows if end is None else end
            step = max(BLOCK_BYTES // self.row_bytes, 1)
            yield from ((row, min(row + step, last)) for row in range(begin, last, step))


class Slab(NamedTuple):
    """Rows [begin, end) of a tensor."""

    of: Stored
    begin: int
    end: int


def index(checkpoint: Path) -> dict[str, Stored]:
    """Name -> tensor, by name, of all that the checkpoint's shards hold. Only headers are read.

    Raises:
        UserError: a file is no sound safetensors file, or chunks leave a gap in a tensor or overlap.
    """
    chunks: dict[str, list[tuple[str, Chunk]]] = {}
    for file in shards_of(checkpoint):
        try:
            for name, dtype, chunk in _chunks_in(file):
                chunks.setdefault(name, []).append((dtype, chunk))
        except UNREADABLE as error:
            if isinstance(error, OSError):
                raise
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            why = why if isinstance(error, KeyError | ValueError) else "its header is of another form"
            raise UserError(f"{file}: not a sound safetensors file ({printable(why)[:200]})") from None
    return {name: _stored(checkpoint, name, chunks[name]) for name in sorted(chunks)}


def write(file: Path, slabs: list[Slab]) -> Iterator[int]:
    """Write a shard; yields the bytes written, block by block.

    Args:
        slabs: of a tensor one at most.
    """
    slabs = sorted(slabs, key=lambda slab: -DTYPES[slab.of.dtype].itemsize)  # so that all are aligned
    offsets = {s.of.name: {"saved_offsets": [s.begin, *(0 for _ in s.of.shape[1:])][: len(s.of.shape)]} for s in slabs}
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    }
    at = 0
    for tensor, begin, end in slabs:
        shape = [end - begin, *tensor.shape[1:]] if tensor.shape else []
        to = at + (end - begin) * tensor.row_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [at, to]}
        at = to
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor, begin, end in slabs:
            for rows in tensor.blocks(begin, end):
                yield stream.write(tensor.rows(*rows).reshape(-1).view(torch.uint8).numpy().data)


def _read(chunk: Chunk, begin: int, end: int, bits: torch.dtype) -> Tensor:
    """Rows [begin, end) of a chunk."""
    shape = (end - begin, *chunk.shape[1:])
    num_bytes = math.prod(shape) * bits.itemsize
    raw = bytearray(num_bytes)
    with open(chunk.file, "rb") as stream:
        stream.seek(chunk.at + begin * (num_bytes // (end - begin)))
        if stream.readinto(raw) != num_bytes:
            raise UserError(f"{chunk.file}: has become shorter while it was read")
    return torch.frombuffer(raw, dtype=bits).view(shape)


def _chunks_in(file: Path) -> Iterator[tuple[str, str, Chunk]]:
    """Name, dtype and chunk of what a file holds.

    Raises:
        ValueError and others of UNREADABLE: it is no sound safetensors file.
    """
    with open(file, "rb") as stream:
        header, data, num_bytes = _header(stream)
    metadata = header.pop("__metadata__", None) or {}
    info = json.loads(metadata["DCP_SHARDING_INFO"]) if metadata.get("DCP_SHARDING_INFO") else None
    filled = 0
    for name, entry in sorted(header.items(), key=lambda item: _whole(item[1]["data_offsets"])):
        dtype, shape, (begin, end) = entry["dtype"], _whole(entry["shape"]), _whole(entry["data_offsets"])
        offsets = (0,) * len(shape) if info is None else _whole(info[name]["saved_offsets"])
        _require(dtype in DTYPES, f"{name} is of an unknown dtype {dtype}")
        _require(len(shape) == len(offsets) <= MOST_DIMENSIONS, f"{name} has offsets of another number of dimensions")
        _require(begin == filled, f"the bytes of {name} don't follow those of its neighbour")
        _require(end - begin == math.prod(shape) * DTYPES[dtype].itemsize, f"{name} has another size than its shape")
        filled = end
        yield name, dtype, Chunk(file, data + begin, offsets, shape)
    _require(filled == num_bytes, "it has more or fewer bytes than its header says")


def _header(stream: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begin, and how many bytes they are."""
    there = os.fstat(stream.fileno()).st_size - 8
    length = int.from_bytes(stream.read(8), "little")
    _require(0 < length <= min(there, MOST_HEADER_BYTES), "its header is cut off")
    header = json.loads(stream.read(length).decode())
    _require(isinstance(header, dict), "its header is no JSON object")
    return header, 8 + length, there - length


def _whole(numbers: Any) -> tuple[int, ...]:
    """A list of whole numbers from 0 to 2^63 - 1, as a tuple."""
    _require(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers),
        "sizes and offsets are whole numbers",
    )
    return tuple(numbers)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _stored(checkpoint: Path, name: str, found: list[tuple[str, Chunk]]) -> Stored:
    dtypes, chunks = {dtype for dtype, _ in found}, [chunk for _, chunk in found]
    dimensions = {len(chunk.shape) for chunk in chunks}
    if len(dtypes) > 1 or len(dimensions) > 1:
        raise UserError(f"{checkpoint}: the chunks of {printable(name)} are of different kinds")
    ends = [[o + n for o, n in zip(c.offsets, c.shape, strict=True)] for c in chunks]
    shape = tuple(map(max, zip(*ends, strict=True)))
    full = sorted((c for c in chunks if math.prod(c.shape)), key=lambda c: c.offsets)
    if math.prod(shape) and not _fill(full, shape, 0):
        raise UserError(f"{checkpoint}: the chunks of {printable(name)} leave gaps, or overlap; is a shard missing?")
    return Stored(name, dtypes.pop(), shape, tuple(full))


def _fill(chunks: list[Chunk], shape: tuple[int, ...], dimension: int) -> bool:
    """Whether chunks, sorted by offsets, tile a box from this dimension on: in strips, and each strip in the dimensions that follow.

    So do all placements of DTensor.
    """
    if dimension == len(shape):
        return len(chunks) == 1
    filled = 0
    for begin, strip in groupby(chunks, key=lambda chunk: chunk.offsets[dimension]):
        same = list(strip)
        if begin != filled or len({chunk.shape[dimension] for chunk in same}) > 1:
            return False
        if not _fill(same, shape, dimension + 1):
            return False
        filled += same[0].shape[dimension]
    return filled == shape[dimension]
