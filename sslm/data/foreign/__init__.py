"""Corpora of token ids that other tools made, read as they are: a file for each format (FORMATS), find.py finds them.

Ids of 16 or 32 bits are memory-mapped where they lie. They are read once, for the largest id and the ends of documents,
which the cache keeps: the next start reads nothing but sizes and times of change. What can't be mapped (other types,
Parquet, Megatron's sequences out of order) is copied into the cache as a corpus, and so are files of less than a
million ids each: windows don't cross shards, so a shard per small file would lose most of them.

Files of a folder with the word val or validation in their name, or in a folder of that name, are held out; those named
test are left out.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslm.data.corpus.shards import FORMAT, SAMPLED, Corpus, Shard, Split, cached_corpus, write_index
from sslm.data.corpus.writer import CorpusWriter
from sslm.data.foreign import files, parquet
from sslm.data.foreign.files import Options, TokenFile
from sslm.data.foreign.find import FORMATS, Format, find
from sslm.system.errors import UserError
from sslm.system.files import fsync, made_whole, sha256_of
from sslm.system.terminal import Report, Reporting, no_progress

MAPPED_TOKENS = 1 << 20
"""Several files are mapped if they have this many ids on average, else joined in the cache."""
LARGEST_ID = (1 << 32) - 1


def recognise(path: str | Path, text_field: str = "text") -> str | None:
    """Tell the kind of token files at a path, a key of FORMATS, from names and first bytes, or None if it has no ids.

    Args:
        path: file, folder, glob, or what Megatron calls a prefix.
        text_field: a Parquet file whose column of this name holds text is text, whatever else is in it.
    """
    return next(iter(find(path, Options(text_field=text_field))), None)


def open_foreign(
    path: str | Path,
    cache_dir: Path,
    *,
    end_id: int | None = None,
    text_field: str = "text",
    progress: Reporting = no_progress,
) -> Corpus:
    """Open token files as a corpus without a tokenizer. Any number of processes may call at once.

    Args:
        path: as `recognise` takes it.
        cache_dir: folder for indexes of the files, and for copies of those that can't be mapped.
        end_id: id that ends a document, for files that don't tell documents apart.
        text_field: column of ids in Parquet, if it has one of that name; else one of the usual names.
        progress: made and told of progress when the files have to be read.

    Raises:
        UserError: no ids there, several kinds of files, damaged ones, or numbers that are no ids.
    """
    if end_id is not None and not 0 <= end_id <= LARGEST_ID:
        raise UserError(f"end-of-document id {end_id}: expected an id, from 0 to {LARGEST_ID}")
    options = Options(end_id, text_field)
    kind, found = _one_kind(str(path), options)
    how = {"ids": kind, "end_id": end_id, "column": text_field if kind == "parquet" else None}
    folder = cache_dir / "corpora" / _key(how, found)

    def make() -> None:
        source = {**how, "files": len(found), "bytes": sum(file.stat().st_size for file, _ in found)}
        opened = _Opened(str(path), found, FORMATS[kind], options, source)
        with progress() as report, made_whole(folder) as part:
            if dtype := _mapped_dtype(opened):
                _map(part, dtype, opened, report)
            else:
                _copy(part, opened, report)

    return cached_corpus(folder, make)


def check_vocabulary(corpus: Corpus, given: str, tokenizer: str, num_entries: int) -> None:
    """Raise UserError if `corpus`, found at `given`, has ids that `tokenizer` with its `num_entries` does not know."""
    if corpus.vocab_size > num_entries:
        raise UserError(
            f"{given}: its largest id is {corpus.vocab_size - 1}, and {tokenizer} has {num_entries} entries; give the "
            f"tokenizer that made these ids: --data.tokenizer NAME"
        )


def _one_kind(given: str, options: Options) -> tuple[str, list[tuple[Path, Split]]]:
    """Find the files at a path, and their only kind."""
    found = find(given, options)
    if not found:
        raise UserError(
            f"{given}: no token ids there; expected .bin (nanoGPT, llm.c), .bin with .idx (Megatron), .npy, or "
            f".parquet with a column of lists named {', '.join(parquet.IDS_COLUMNS)}"
        )
    if len(found) > 1:
        first, second = [(kind, paths[0][0]) for kind, paths in found.items()][:2]
        raise UserError(
            f"{given}: holds files of two kinds, {first[0]} ({first[1].name}) and {second[0]} ({second[1].name}); name "
            f"those meant by a pattern, such as '{first[1].with_name('*' + first[1].suffix)}'"
        )
    [(kind, paths)] = found.items()
    wanted = [(path, split) for path, split in paths if split is not None]
    if not wanted:
        raise UserError(f"{given}: its files are named test, and those are left out; name the files themselves")
    return kind, wanted


def _key(how: dict[str, Any], found: list[tuple[Path, Split]]) -> str:
    """Hash paths, sizes and times of change to the corpus' name in the cache."""
    key = hashlib.sha256(json.dumps([FORMAT, how]).encode())
    for path, split in found:
        for part in (path, path.with_suffix(".bin")) if how["ids"] == "megatron" else (path,):
            with suppress(FileNotFoundError):  # opening it says so
                stat = part.stat()
                key.update(json.dumps([os.path.abspath(part), split, stat.st_size, stat.st_mtime_ns]).encode())
    return key.hexdigest()[:20]


@dataclass(frozen=True)
class _Opened:
    """Files that are opened, and so checked, each time they are gone through: there may be a million."""

    given: str
    """What the user called them."""
    found: list[tuple[Path, Split]]
    format: Format
    options: Options
    source: dict[str, Any]
    """Record for the index."""

    def __iter__(self) -> Iterator[tuple[TokenFile, Split]]:
        return ((self.format.open_tokens(path, self.options), split) for path, split in self.found)


# ------------------------------------------------------------------------------------------------ as a corpus


def _mapped_dtype(opened: _Opened) -> str | None:
    """Find the dtype that all files can be mapped as, or None if they must be copied."""
    sizes: dict[Split, list[int]] = {}
    dtypes: set[str] = set()
    for file, split in opened:
        if file.piece is None or (dtype := file.piece.mapped_dtype) is None:
            return None
        dtypes.add(dtype)
        sizes.setdefault(split, []).append(file.piece.num_tokens)
    is_large = all(len(each) == 1 or sum(each) >= MAPPED_TOKENS * len(each) for each in sizes.values())
    return dtypes.pop() if len(dtypes) == 1 and is_large else None


class _Tally:
    """Checks ids as they are read, and counts."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.largest, self.num_documents, self.num_tokens = -1, 0, 0

    def read(self, file: TokenFile) -> Iterator[files.Chunk]:
        first = 0
        for ids, ends in file.chunks():
            if len(ids):
                self._check(ids, file.path, first)
            first += len(ids)
            self.num_documents += len(ends)
            self.num_tokens += len(ids)
            self.report(self.num_documents, self.num_tokens)
            yield ids, ends

    def _check(self, ids: Any, path: Path, first: int) -> None:
        low, high = 0 if ids.dtype.kind == "u" else int(ids.min()), int(ids.max())
        if low < 0 or high > LARGEST_ID:
            where = first + int(np.argmin(ids) if low < 0 else np.argmax(ids))
            wrong = low if low < 0 else high
            raise UserError(f"{path}: has {wrong} at place {where}, which is no token id (0 to {LARGEST_ID})")
        self.largest = max(self.largest, high)

    def vocab_size(self, given: str) -> int:
        if self.largest < 0:
            raise UserError(f"{given}: there are no token ids in it, its files are empty")
        return self.largest + 1


def _map(part: Path, dtype: str, opened: _Opened, report: Report) -> None:
    """Write an index whose shards are the files, and the ends of their documents."""
    tally = _Tally(report)
    shards = []
    for number, (file, split) in enumerate(opened):
        ends_path, num_tokens = part / f"{number:05d}.ends", 0
        with open(ends_path, "wb") as stream:
            for ids, ends in tally.read(file):
                stream.write((ends + num_tokens).astype(np.int64).tobytes())
                num_tokens += len(ids)
        fsync(ends_path)
        if num_tokens:  # a file without ids can't be mapped
            path, offset = str(file.path.absolute()), file.piece.offset if file.piece else 0
            counts, ends_sha256 = (num_tokens, ends_path.stat().st_size // 8, 0), sha256_of(ends_path)
            identity = _sampled_sha256(file.path, ends_sha256)
            shards.append(Shard(path, split, *counts, identity, ends_sha256, offset, ends_path.name))
    write_index(Corpus(part, dtype, tally.vocab_size(opened.given), "", "", tuple(shards), [opened.source]))


def _copy(part: Path, opened: _Opened, report: Report) -> None:
    """Write a corpus: read once for the largest id, which decides the dtype, and once to copy."""
    tally = _Tally(report)
    for file, _ in opened:
        for _ in tally.read(file):
            pass
    with CorpusWriter(part, tally.vocab_size(opened.given)) as writer:
        tally = _Tally(report)
        for file, split in opened:
            for ids, ends in tally.read(file):
                writer.add(split, ids, ends, 0)
        writer.finish("", "", [opened.source])


def _sampled_sha256(path: Path, *more: str) -> str:
    """Hash a file's size, its first and last megabyte, 64 pieces of 64 kB evenly spread, and `more`.

    It tells large files apart without reading all of them, and is marked as no checksum.
    """
    size = path.stat().st_size
    found = hashlib.sha256(json.dumps([size, *more]).encode())
    pieces = [(i * max(size - (1 << 16), 0) // 63, 1 << 16) for i in range(64)]
    with open(path, "rb") as stream:
        for start, length in [(0, 1 << 20), (max(size - (1 << 20), 0), 1 << 20), *pieces]:
            stream.seek(start)
            found.update(stream.read(length))
    return SAMPLED + found.hexdigest()
