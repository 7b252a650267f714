"""Documents -> prepared corpus: tokenised on all cores, in flat memory, made once and atomically.

The tokenizer's own threads use the cores; a second thread turns the last batch into arrays and writes it meanwhile.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sslm.data import tokenizer as tokenizers
from sslm.data.corpus import Piece, Source
from sslm.data.shards import FORMAT, Corpus, Split, is_corpus, open_corpus
from sslm.data.tokenizer import Tokenizer
from sslm.data.writer import CorpusWriter
from sslm.errors import UserError
from sslm.files import fsync, sha256_of, write_atomically
from sslm.terminal import Report

BATCH_CHARS = 1 << 22
HELD_OUT_EVERY = 100
"""One document in so many is held out, chosen by its number; of the first so many none, so that small corpora (split by a
contiguous tail when read, see stream.py) keep their text in one piece."""


def prepare(source: Source, tokenizer: str | Tokenizer, out: Path, report: Report) -> Corpus:
    """Tokenise `source` into the folder `out`, which appears whole or not at all.

    Args:
        tokenizer: a tokenizer, or `bpe:SIZE` to train one on the source first.

    Raises:
        UserError: there is something at `out` already, the source has no text, or it is bad.
    """
    with only_one_makes(out):
        if out.exists():
            raise UserError(f"{out}: already exists; remove it, or choose another folder")
        return _make(source, tokenizer, out, report)


def prepare_cached(
    source: Source,
    tokenizer: str | Tokenizer,
    cache_dir: Path,
    progress: Callable[[], AbstractContextManager[Report]] | None = None,
) -> Corpus:
    """The prepared corpus from the cache, made first if it is not there whole. Any number of processes may call at once."""
    who = tokenizer if isinstance(tokenizer, str) else tokenizers.identity(tokenizer)
    key = hashlib.sha256(json.dumps([FORMAT, source.record, who], sort_keys=True).encode()).hexdigest()[:20]
    folder = cache_dir / "corpora" / key
    if is_corpus(folder):
        with suppress(UserError):
            return open_corpus(folder)
    with only_one_makes(folder):
        if is_corpus(folder):
            with suppress(UserError):  # damaged: make it again
                return open_corpus(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with progress() if progress else nullcontext(_silent) as report:
            return _make(source, tokenizer, folder, report)


@contextmanager
def only_one_makes(out: Path) -> Iterator[None]:
    """Wait for whoever is making the folder `out`; the lock dies with its holder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):  # FileLock would try for ever in a folder that takes no files
        pass
    lock = out.parent / f".{out.name}.lock"
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # a waiter notices that the file it locked is gone, and tries again


def _make(source: Source, tokenizer: str | Tokenizer, out: Path, report: Report) -> Corpus:
    part = out.parent / f".{out.name}.tmp"
    shutil.rmtree(part, ignore_errors=True)  # what a killed maker left
    part.mkdir()
    name = tokenizer if isinstance(tokenizer, str) else str(tokenizer.name_or_path)
    try:
        if isinstance(tokenizer, str):
            size = tokenizers.bpe_size(tokenizer)
            tokenizer = tokenizers.train_bpe(source.pieces(), size) if size else tokenizers.load(tokenizer)
        tokenizer.save_pretrained(part / "tokenizer")
        tokenizer = tokenizers.load(part / "tokenizer")  # what is used later is used now
        with CorpusWriter(part, len(tokenizer)) as writer:
            _tokenise(source, tokenizer, writer, report)
            if not writer.finish(name, tokenizers.identity(tokenizer), source.record):
                raise UserError(f"{source.name}: there is no text in it")
        os.rename(part, out)
        fsync(out.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return open_corpus(out)


def remembering_hash(cache_dir: Path) -> Callable[[Path], str]:
    """SHA-256 of files, remembered by path, size and time of change: large inputs are hashed once."""

    def sha256(file: Path) -> str:
        stat = file.stat()
        key = hashlib.sha256(f"{file.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
        memo = cache_dir / "hashes" / key
        if memo.is_file() and len(known := memo.read_text()) == 64:
            return known
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, digest := sha256_of(file))
        return digest

    return sha256


# ------------------------------------------------------------------------------------------------ tokenising


def _tokenise(source: Source, tokenizer: Tokenizer, writer: CorpusWriter, report: Report) -> None:
    encode, end = _encoder(tokenizer), tokenizers.end_of_document(tokenizer)
    documents = tokens = num_bytes = 0

    def write(texts: list[str], encodings: Any, ends_document: list[bool]) -> None:
        nonlocal documents, tokens, num_bytes
        for split, ids, ends, size in _arrays(texts, encodings, ends_document, end, first_document=documents):
            writer.add(split, ids, ends, size)
            tokens += len(ids)
            num_bytes += size
        documents += sum(ends_document)
        report(documents, tokens, min(num_bytes / source.num_bytes, 1.0) if source.num_bytes else None)

    with ThreadPoolExecutor(max_workers=1) as pool:
        writing: Future[None] | None = None
        for batch in _batches(_without_empty(source.pieces())):
            texts = [text for text, _ in batch]
            encodings = encode(texts)
            if writing is not None:
                writing.result()
            writing = pool.submit(write, texts, encodings, [ends for _, ends in batch])
        if writing is not None:
            writing.result()


def _encoder(tokenizer: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
    backend.no_truncation()
    backend.no_padding()
    return lambda texts: [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _without_empty(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Drop documents without any text; an empty last piece still ends its document."""
    open_document = False
    for text, ends in pieces:
        if open_document or text.strip():
            yield text, ends
            open_document = not ends


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, chars = [], 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece[0])
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _arrays(
    texts: list[str], encodings: list[list[int]], ends_document: list[bool], end: int, first_document: int
) -> Iterator[tuple[Split, NDArray[np.uint32], NDArray[np.int64], int]]:
    """Per split of this batch: its ids, where documents end in them, and its bytes of text."""
    document = first_document
    ids: dict[Split, list[list[int]]] = {"train": [], "val": []}
    ends: dict[Split, list[int]] = {"train": [], "val": []}
    length: dict[Split, int] = {"train": 0, "val": 0}
    num_bytes: dict[Split, int] = {"train": 0, "val": 0}
    for text, encoding, is_end in zip(texts, encodings, ends_document, strict=True):
        split: Split = "val" if is_held_out(document) else "train"
        ids[split].append([*encoding, end] if is_end else encoding)
        length[split] += len(encoding) + is_end
        num_bytes[split] += len(text.encode())
        if is_end:
            ends[split].append(length[split])
            document += 1
    for split in ids:
        if length[split]:
            flat = np.fromiter(chain.from_iterable(ids[split]), np.uint32, length[split])
            yield split, flat, np.array(ends[split], np.int64), num_bytes[split]


def is_held_out(document: int) -> bool:
    """Whether document number `document` is held out: about one in HELD_OUT_EVERY, spread as if at random."""
    mixed = (document * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & (1 << 64) - 1
    return document >= HELD_OUT_EVERY and (mixed >> 32) % HELD_OUT_EVERY == 0


def _silent(documents: int, tokens: int, share: float | None = None) -> None:
    pass
