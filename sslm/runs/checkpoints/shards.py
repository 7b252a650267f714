"""Tensors of a checkpoint, whichever files they lie in: read and written some rows at a time.

A shard is a safetensors file. What it holds of a tensor is a chunk; its metadata say under DCP_SHARDING_INFO where the
chunk begins in the tensor (torch.distributed.checkpoint.hf_storage). At most BLOCK_BYTES, or a row, is in memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sslm.runs.checkpoints.folder import UNREADABLE, shards_of
from sslm.system.errors import UserError, printable

BLOCK_BYTES = 16 << 20
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
    """A box of a tensor, in one file."""

    file: Path
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
        """Read the rows [begin, end): [end - begin, *shape[1:]]."""
        dtype = DTYPES[self.dtype]
        rows = torch.empty((end - begin, *self.shape[1:]), dtype=BITS[dtype.itemsize])
        for chunk in self.chunks:
            first, *rest = chunk.offsets or (0,)
            start, stop = max(begin, first), min(end, first + (chunk.shape or (1,))[0])
            if start < stop:
                columns = (slice(o, o + n) for o, n in zip(rest, chunk.shape[1:], strict=True))
                with safe_open(chunk.file, "pt") as file:
                    is_scalar, here = not chunk.shape, slice(start - first, stop - first)
                    part = file.get_tensor(self.name) if is_scalar else file.get_slice(self.name)[here]
                rows[(slice(start - begin, stop - begin), *columns)] = part.view(rows.dtype)
        return rows.view(dtype)

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Cut the rows [begin, end) into ranges of at most BLOCK_BYTES."""
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
    """Return all tensors of a checkpoint, by name. Only headers are read.

    Raises:
        UserError: a file is no sound safetensors file, or chunks leave a gap in a tensor or overlap.
    """
    chunks: dict[str, list[tuple[str, Chunk]]] = {}
    for file in shards_of(checkpoint):
        try:
            for name, dtype, chunk in _chunks_in(file):
                chunks.setdefault(name, []).append((dtype, chunk))
        except OSError:
            raise
        except (SafetensorError, *UNREADABLE) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            why = why if isinstance(error, KeyError | ValueError | SafetensorError) else "its header is of another form"
            raise UserError(f"{file}: not a sound safetensors file ({printable(why)[:200]})") from None
    return {name: _stored(checkpoint, name, chunks[name]) for name in sorted(chunks)}


def write(file: Path, slabs: list[Slab]) -> Iterator[int]:
    """Write a shard, with one slab of a tensor at most; yields the bytes written, block by block."""
    slabs = sorted(slabs, key=lambda slab: -DTYPES[slab.of.dtype].itemsize)  # so that all are aligned
    offsets = {s.of.name: {"saved_offsets": [s.begin, *(0 for _ in s.of.shape[1:])][: len(s.of.shape)]} for s in slabs}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    header: dict[str, Any] = {"__metadata__": metadata}
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


def _chunks_in(file: Path) -> Iterator[tuple[str, str, Chunk]]:
    """Yield name, dtype and chunk of each tensor in a file; raises SafetensorError or UNREADABLE if it is not sound."""
    with safe_open(file, "pt") as shard:
        info = json.loads((shard.metadata() or {}).get("DCP_SHARDING_INFO") or "null")
        for name in shard.keys():  # noqa: SIM118 not a dict
            tensor = shard.get_slice(name)
            dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
            offsets = (0,) * len(shape) if info is None else _whole(info[name]["saved_offsets"])
            _require(dtype in DTYPES, f"{name} is of an unknown dtype {dtype}")
            has_all = len(shape) == len(offsets) <= MOST_DIMENSIONS
            _require(has_all, f"{name} has offsets of another number of dimensions")
            yield name, dtype, Chunk(file, offsets, shape)


def _whole(numbers: Any) -> tuple[int, ...]:
    """Return a list of whole numbers from 0 to 2^63 - 1 as a tuple."""
    is_list = isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    _require(is_list, "offsets are whole numbers")
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
    """Whether chunks, sorted by offsets, tile a box from this dimension on, strip by strip, as those of DTensor do."""
    if dimension == len(shape):
        return len(chunks) == 1
    filled = 0
    for begin, strip in groupby(chunks, key=lambda chunk: chunk.offsets[dimension]):
        same = list(strip)
        has_one_length = len({chunk.shape[dimension] for chunk in same}) == 1
        if begin != filled or not has_one_length or not _fill(same, shape, dimension + 1):
            return False
        filled += same[0].shape[dimension]
    return filled == shape[dimension]
