"""Megatron-Core's indexed dataset, version 1: ids in NAME.bin, and in NAME.idx where sequences and documents lie.

An .idx has a header of 34 bytes (magic, version, code of the ids' type, number of sequences, length of the document
index), then each sequence's length in ids (int32), then each sequence's first byte (int64), then the document index:
how many sequences there are before each document and at the end (int64: 0, …, all), then perhaps a mode of each
sequence (int8), which is ignored. Documents and sequences may be empty.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslm.data.foreign import files
from sslm.system.errors import UserError

MAGIC = b"MMIDIDX\0\0"
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
CHUNK_SEQUENCES = 1 << 18

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _MegatronIndex:
    path: Path
    dtype: np.dtype[Any]
    num_sequences: int
    num_bounds: int

    def sequences(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Read (lengths in ids, first bytes) of sequences first … last − 1."""
        count = last - first
        lengths = np.fromfile(self.path, "<i4", count, offset=34 + 4 * first)
        pointers = np.fromfile(self.path, "<i8", count, offset=34 + 4 * self.num_sequences + 8 * first)
        return lengths.astype(np.int64), pointers.astype(np.int64)

    def bounds(self, first: int, last: int) -> Ints:
        """Read numbers first … last − 1 of the document index."""
        offset = 34 + 12 * self.num_sequences + 8 * first
        return np.fromfile(self.path, "<i8", last - first, offset=offset).astype(np.int64)

    def bounds_upto(self, last: int, first: int) -> Ints:
        """Read the document index from number `first` on, up to sequence `last`."""
        found = []
        while first < self.num_bounds:
            block = self.bounds(first, min(first + CHUNK_SEQUENCES, self.num_bounds))
            inside = int(np.searchsorted(block, last, side="right"))
            found.append(block[:inside])
            first += inside
            if inside < len(block):
                break
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def slices(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.num_sequences, CHUNK_SEQUENCES):
            yield first, min(first + CHUNK_SEQUENCES, self.num_sequences)


def recognises(path: Path, options: files.Options) -> Path | None:
    """Recognise either file of a pair: its .idx."""
    idx, tokens, suffix = path.with_suffix(".idx"), path.with_suffix(".bin"), path.suffix.lower()
    if suffix == ".bin":
        return idx if idx.is_file() else None
    return path if suffix == ".idx" and (tokens.is_file() or files.begins_with(path, (MAGIC,))) else None


def open_tokens(path: Path, options: files.Options) -> files.TokenFile:
    """Open the pair of an .idx. It raises UserError if the two don't match."""
    tokens = path.with_suffix(".bin")
    if not tokens.is_file():
        raise UserError(f"{path}: there is no {tokens.name} beside it, where the ids would be; copy it here too")
    index = _read_index(path)
    _check_documents(index)
    in_order = _check_sequences(index, tokens)
    size = tokens.stat().st_size
    piece = files.InOnePiece(index.dtype, 0, size // index.dtype.itemsize) if in_order else None
    return files.TokenFile(tokens, lambda: _megatron_chunks(index, tokens), piece)


def _read_index(idx: Path) -> _MegatronIndex:
    head = files.first_bytes(idx, 34)
    if not head.startswith(MAGIC):
        raise UserError(f"{idx}: is no index of Megatron-Core (MMIDIDX); make it again, or move it away from its .bin")
    if len(head) < 34:
        raise UserError(f"{idx}: ends within its header of 34 bytes; it is cut off, copy it again")
    version, code, num_sequences, num_bounds = struct.unpack("<QBQQ", head[9:])
    if version != 1:
        raise UserError(f"{idx}: version {version} of Megatron-Core's index; only version 1 is known")
    dtype = np.dtype(DTYPES.get(code, "V"))
    if dtype.kind not in "ui":
        what = dtype.name if dtype.kind == "f" else f"ids of an unknown type (code {code})"
        raise UserError(f"{idx}: holds {what}, not whole numbers; ids must be one of Megatron's integer types")
    expected = 34 + 12 * num_sequences + 8 * num_bounds
    size = idx.stat().st_size
    if size not in (expected, expected + num_sequences):
        content = f"{num_sequences} sequences and {num_bounds - 1} documents take {expected} bytes"
        raise UserError(f"{idx}: its {content}, and it has {size}; it is damaged, copy it again")
    return _MegatronIndex(idx, dtype, num_sequences, num_bounds)


def _check_documents(index: _MegatronIndex) -> None:
    before, rises = 0, index.num_bounds > 0 and int(index.bounds(0, 1)[0]) == 0
    for first in range(0, index.num_bounds, CHUNK_SEQUENCES):
        bounds = index.bounds(first, min(first + CHUNK_SEQUENCES, index.num_bounds))
        rises = rises and bool((np.diff(bounds, prepend=before) >= 0).all())
        before = int(bounds[-1])
    if not rises or before != index.num_sequences:
        rise = f"its documents don't rise from sequence 0 to the last, {index.num_sequences}"
        raise UserError(f"{index.path}: {rise}; it is damaged or unfinished, make it again")


def _check_sequences(index: _MegatronIndex, tokens: Path) -> bool:
    """Whether the sequences fill the file in order."""
    size, item = tokens.stat().st_size, index.dtype.itemsize
    end, in_order = 0, True
    for first, last in index.slices():
        lengths, pointers = index.sequences(first, last)
        after = pointers + lengths * item
        bad = np.flatnonzero((lengths < 0) | (lengths > 0) & ((pointers < 0) | (pointers > size - lengths * item)))
        if len(bad):
            raise UserError(
                f"{tokens}: has {size} bytes, and its .idx has sequence {first + int(bad[0])} at byte "
                f"{pointers[bad[0]]} to {after[bad[0]]}; the two don't belong together, or the .bin is cut off"
            )
        used = lengths > 0
        starts = np.concatenate([[end], after[used]])
        in_order = in_order and bool((pointers[used] == starts[:-1]).all())
        end = int(starts[-1])
    if in_order and end != size:
        raise UserError(f"{tokens}: has {size} bytes, and its .idx knows of {end}; the two don't belong together")
    return in_order


def _megatron_chunks(index: _MegatronIndex, tokens: Path) -> Iterator[files.Chunk]:
    document = 1  # before which number 0 of the index says that there is nothing
    with open(tokens, "rb") as stream:
        for first, last in index.slices():
            lengths, pointers = index.sequences(first, last)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            bounds = index.bounds_upto(last, document)
            document += len(bounds)
            ends = offsets[bounds - first]
            yield from _cut(_runs(stream, index.dtype, lengths, pointers), ends, index.dtype)


def _runs(stream: BinaryIO, dtype: np.dtype[Any], lengths: Ints, pointers: Ints) -> Iterator[NDArray[Any]]:
    """Read sequences' ids, those that lie one after the other together."""
    lengths, pointers = lengths[lengths > 0], pointers[lengths > 0]
    if len(lengths) == 0:
        return
    jumps = np.flatnonzero(pointers[1:] != pointers[:-1] + lengths[:-1] * dtype.itemsize) + 1
    starts = np.concatenate([[0], jumps])
    for pointer, count in zip(pointers[starts].tolist(), np.add.reduceat(lengths, starts).tolist(), strict=True):
        stream.seek(pointer)
        for start in range(0, count, files.CHUNK_TOKENS):
            yield files.take(stream, dtype, min(files.CHUNK_TOKENS, count - start))


def _cut(parts: Iterable[NDArray[Any]], ends: Ints, dtype: np.dtype[Any]) -> Iterator[files.Chunk]:
    """Give each part the ends that lie in it, and ends after the last id an empty part."""
    start = taken = 0
    for ids in parts:
        upto = int(np.searchsorted(ends, start + len(ids), side="right"))
        yield ids, ends[taken:upto] - start
        start, taken = start + len(ids), upto
    if taken < len(ends):
        yield np.empty(0, dtype), ends[taken:] - start
