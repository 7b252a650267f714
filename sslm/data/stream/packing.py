"""Best-fit packing: windows that hold whole documents if they fit (Ding et al. 2024, arXiv:2404.10830).

Documents longer than a window are cut into pieces; then each piece, the longest first, goes into the window with the
least room that still takes it. Tokens stay where they are: a plan, made once and memory-mapped, lists which stretches
of the shard make up each window (docs/formats.md, "Packing plans"). It is made a few million documents at a time, so in
bounded memory.
"""

import errno
import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.shards import FORMAT, Corpus
from sslm.data.stream.windows import Region
from sslm.system.errors import UserError
from sslm.system.files import fsync, made_whole, one_maker, sha256_of
from sslm.system.terminal import say

DOCUMENTS_AT_ONCE = 1 << 21
MOST_OPEN = 100
"""Largest number of regions whose plans are mapped at once: each map holds a file descriptor."""

Ints = NDArray[np.int64]


def best_fit(lengths: Ints, capacity: int) -> Ints:
    """Pack items into bins, best-fit decreasing: [n] lengths of at most `capacity` -> [n] each item's bin, from 0.

    >>> best_fit(np.array([2, 5, 3, 4]), capacity=6)
    array([1, 0, 2, 1])
    """
    bins = np.empty(len(lengths), np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    with_room: dict[int, list[Ints]] = {}  # room left -> bins
    num_bins = done = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        items, done = longest_first[done : done + count], done + count
        while len(items):
            room = min((room for room in with_room if room >= size), default=capacity)
            each = room // size
            needed = -(-len(items) // each)
            if room in with_room and room != capacity:
                open_bins = np.concatenate(with_room.pop(room))
                taken, left = open_bins[:needed], open_bins[needed:]
                if len(left):
                    with_room[room] = [left]
            else:
                taken = np.arange(num_bins, num_bins + needed)
                num_bins += needed
            filled, items = items[: each * len(taken)], items[each * len(taken) :]
            bins[filled] = np.repeat(taken, each)[: len(filled)]
            in_last = len(filled) - each * (len(taken) - 1)
            for some, inside in ((taken[:-1], each), (taken[-1:], in_last)):
                if len(some) and (rest := room - inside * size):
                    with_room.setdefault(rest, []).append(some)
    return bins


def pieces_of(documents: Ints, ends: Ints, window_len: int, stride: int) -> tuple[Ints, Ints]:
    """Cut documents [start, end) into pieces of at most a window: their (starts, lengths).

    A long document's pieces start every `stride` tokens, as windows do.

    >>> pieces_of(np.array([0, 12]), np.array([12, 15]), window_len=5, stride=4)
    (array([ 0,  4,  8, 12]), array([5, 5, 4, 3]))
    """
    lengths = ends - documents
    documents, lengths = documents[lengths > 0], lengths[lengths > 0]
    overlap = window_len - stride
    pieces = np.maximum(-(-(lengths - overlap) // stride), 1)
    first = np.cumsum(pieces) - pieces
    within = (np.arange(pieces.sum()) - np.repeat(first, pieces)) * stride
    return np.repeat(documents, pieces) + within, np.minimum(np.repeat(lengths, pieces) - within, window_len)


class Packed:
    """Windows of a packing plan, memory-mapped."""

    def __init__(self, plan: Path, regions: "list[RegionPlan]", window_len: int, stride: int) -> None:
        self.plan, self.window_len, self.stride = plan, window_len, stride
        self._regions = regions
        self.num_windows = tuple(region.windows for region in self._regions)
        self.fill = sum(region.tokens for region in self._regions) / max(sum(self.num_windows) * window_len, 1)
        """Fraction of the windows' places that hold a token."""
        self._hashed: set[int] = set()
        self._tables: dict[int, tuple[Ints, Ints, Ints]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # mapped anew in another process

    def pieces(self, region: int, window: int) -> list[tuple[int, int]]:
        """List the pieces of a window, (start in the shard, length), in order."""
        first, starts, lengths = self._table(region)
        here = slice(first[window], first[window + 1])
        return list(zip(starts[here].tolist(), lengths[here].tolist(), strict=True))

    def _table(self, region: int) -> tuple[Ints, Ints, Ints]:
        if region not in self._tables:
            while len(self._tables) >= MOST_OPEN:
                self._tables.pop(next(iter(self._tables)))
            files = _files(self.plan / f"{region:05d}")
            if region not in self._hashed and hashes_of(files) != self._regions[region].sha256:
                raise UserError(f"{self.plan}: is damaged; remove this folder, and it is made again")
            self._hashed.add(region)
            first, starts, lengths = (np.memmap(file, np.int64, "r").view(np.ndarray) for file in files)
            self._tables[region] = first, starts, lengths
        return self._tables[region]


@dataclass(frozen=True)
class RegionPlan:
    """Sizes of one region's part of a plan."""

    windows: int
    pieces: int
    tokens: int
    sha256: list[str]
    """Hashes of its three files."""


def pack(corpus: Corpus, regions: list[Region], window_len: int, stride: int, cache_dir: Path) -> Packed:
    """Find or make the plan for some regions: beside the shards, or in the cache if that folder can't be written to."""
    cut = [[region.shard.file, region.shard.ends_sha256, region.start, region.end] for region in regions]
    key = [FORMAT, corpus.sha256, window_len, stride, cut]
    name = f"{window_len}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    for folder in (corpus.folder / "packing", cache_dir / "packing"):
        if plans := _read_plans(folder / name):
            return Packed(folder / name, plans, window_len, stride)
    say(f"Packing documents into windows of {window_len} tokens")
    try:
        return _make(corpus.folder / "packing" / name, corpus, regions, window_len, stride)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return _make(cache_dir / "packing" / name, corpus, regions, window_len, stride)


def _make(out: Path, corpus: Corpus, regions: list[Region], window_len: int, stride: int) -> Packed:
    with one_maker(out):
        plans = _read_plans(out)
        if plans is None:
            shutil.rmtree(out, ignore_errors=True)  # damaged, if it is there
            with made_whole(out) as part:
                plans = [
                    _write_region(part / f"{number:05d}", corpus, region, window_len, stride)
                    for number, region in enumerate(regions)
                ]
                (part / "plan.json").write_text(json.dumps([asdict(plan) for plan in plans]) + "\n")
                fsync(part / "plan.json")
    return Packed(out, plans, window_len, stride)


def _read_plans(folder: Path) -> list[RegionPlan] | None:
    """Read a plan's sizes, or return None if they are not those of its files."""
    try:
        plans = [RegionPlan(**plan) for plan in json.loads((folder / "plan.json").read_text())]
        for number, plan in enumerate(plans):
            sizes = [file.stat().st_size for file in _files(folder / f"{number:05d}")]
            if sizes != [8 * (plan.windows + 1), 8 * plan.pieces, 8 * plan.pieces]:
                return None
    except (OSError, ValueError, TypeError):
        return None
    return plans


def _write_region(part: Path, corpus: Corpus, region: Region, window_len: int, stride: int) -> RegionPlan:
    """Pack one region, some documents at a time."""
    ends = corpus.document_ends(region.shard)
    low, high = (int(i) for i in np.searchsorted(ends, [region.start + 1, region.end]))
    windows = pieces = tokens = 0
    begin = region.start
    with ExitStack() as stack:
        files = [stack.enter_context(open(file, "wb")) for file in _files(part)]
        for at in range(low, high + 1, DOCUMENTS_AT_ONCE):
            some = np.asarray(ends[at : min(at + DOCUMENTS_AT_ONCE, high)])
            if at + DOCUMENTS_AT_ONCE > high:  # the last document ends beyond the region
                some = np.append(some, region.end)
            starts, lengths = pieces_of(np.concatenate([[begin], some[:-1]]), some, window_len, stride)
            begin = int(some[-1])
            bins = best_fit(lengths, window_len)
            by_bin = np.argsort(bins, kind="stable")
            num_bins = int(bins.max()) + 1 if len(bins) else 0
            first = pieces + np.searchsorted(bins[by_bin], np.arange(num_bins))
            for file, column in zip(files, (first, starts[by_bin], lengths[by_bin]), strict=True):
                file.write(column.astype(np.int64).tobytes())
            windows, pieces, tokens = windows + num_bins, pieces + len(bins), tokens + int(lengths.sum())
        files[0].write(np.array([pieces], np.int64).tobytes())
    for written in _files(part):
        fsync(written)
    return RegionPlan(windows, pieces, tokens, hashes_of(_files(part)))


def hashes_of(files: list[Path]) -> list[str]:
    return [sha256_of(file) if file.is_file() else "" for file in files]


def _files(region: Path) -> list[Path]:
    return [region.with_suffix(suffix) for suffix in (".first", ".starts", ".lengths")]
