"""Tokenise pieces of text on all cores, in order, in flat memory.

The tokenizer's own threads do the work, without Python's lock, on two batches at a time or more, so that the cores are
busy while a batch is handed over or waits for its longest text. What a batch holds depends on the text alone.
"""

import ctypes
import os
import re
import sys
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from sslm.data.corpus.documents import Piece
from sslm.data.corpus.shards import Split
from sslm.data.corpus.tokenizer import (
    Encode,
    Tokenizer,
    TokenRules,
    beginning,
    end_of_document,
    special_names,
    text_encoder,
)

BATCH_CHARS = 1 << 20
TEXT_CHARS = 256
"""Overhead of a text, in characters, so that a million tiny documents are not one batch."""

HELD_OUT_EVERY = 100
"""One document in so many is held out, chosen by its number; none of the first so many, so that small corpora, whose
tail is held out when they are read, keep their text in one piece."""


@dataclass(frozen=True)
class Batch:
    """Consecutive pieces of text."""

    pieces: list[Piece]
    first_document: int
    """Number of the first piece's document."""
    begins_document: bool
    """Whether the first piece is its document's first."""


@dataclass
class Ids:
    """A batch's ids of one split."""

    ids: "array[int]" = field(default_factory=lambda: array("I"))
    ends: "array[int]" = field(default_factory=lambda: array("q"))
    """Offsets in `ids` just after a document's last."""
    num_bytes: int = 0
    """Bytes of the text in UTF-8."""
    special_tokens: int = 0
    """Names of special tokens that stand in the text."""


def is_held_out(document: int) -> bool:
    """Whether document number `document` is held out: about one in HELD_OUT_EVERY, spread as if at random."""
    mixed = (document * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & (1 << 64) - 1
    return document >= HELD_OUT_EVERY and (mixed >> 32) % HELD_OUT_EVERY == 0


def without_empty(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Drop documents without any text; an empty last piece still ends its document."""
    open_document = False
    for text, ends in pieces:
        if open_document or (text and not text.isspace()):
            yield text, ends
            open_document = not ends


def batches(pieces: Iterable[Piece], first_document: int, begins_document: bool = True) -> Iterator[Batch]:
    """Group pieces; `first_document` is the number of the first one's document, which may begin before it."""
    batch: list[Piece] = []
    size, document = 0, first_document
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0]) + TEXT_CHARS
        document += piece[1]
        if size >= BATCH_CHARS:
            yield Batch(batch, first_document, begins_document)
            batch, size, first_document, begins_document = [], 0, document, piece[1]
    if batch:
        yield Batch(batch, first_document, begins_document)


def encode(
    batches: Iterable[Batch], tokenizer: Tokenizer, rules: TokenRules
) -> Generator[tuple[Batch, dict[Split, Ids]]]:
    """Tokenise batches in order, split into what is trained on and what is held out, each document within `Around`."""
    encode_texts, at_once = text_encoder(tokenizer, rules), _num_at_once(tokenizer)
    around = Around(beginning(tokenizer, rules), end_of_document(tokenizer))
    names = re.compile("|".join(map(re.escape, special_names(tokenizer))))
    yield from _overlapped(batches, lambda batch: _ids(batch, encode_texts, around, names), at_once)


def encode_pieces(
    batches: Iterable[Batch], tokenizer: Tokenizer, rules: TokenRules
) -> Generator[tuple[Batch, list[list[int]]]]:
    """Tokenise batches in order: the ids of each piece, and nothing around a document."""
    encode_texts, at_once = text_encoder(tokenizer, rules), _num_at_once(tokenizer)
    yield from _overlapped(batches, lambda batch: list(encode_texts([text for text, _ in batch.pieces])), at_once)


Result = TypeVar("Result")


def _overlapped(
    batches: Iterable[Batch], work: Callable[[Batch], Result], at_once: int
) -> Generator[tuple[Batch, Result]]:
    """Do the work on batches in order, on a few at once. Reading them and using the results overlap with it."""
    running: deque[tuple[Batch, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(max_workers=at_once)
    try:
        for batch in batches:
            running.append((batch, pool.submit(work, batch)))
            if len(running) > at_once:
                batch, future = running.popleft()
                yield batch, future.result()
        for batch, future in running:
            yield batch, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def give_back_memory() -> None:
    """Return freed memory to the system: glibc's heaps, one per thread, would keep it and grow over hours."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Around(NamedTuple):
    """Ids that stand around each document."""

    begin: list[int]
    end: int


def _num_at_once(tokenizer: Tokenizer) -> int:
    """Return how many threads may call a tokenizer at once; a batch of long documents is a few pieces only."""
    return 2 + (os.cpu_count() or 1) // 4 if hasattr(tokenizer, "backend_tokenizer") else 1


def _ids(batch: Batch, encode_texts: Encode, around: Around, names: re.Pattern[str]) -> dict[Split, Ids]:
    """Tokenise a batch into its splits, each document within `around`."""
    document, begins = batch.first_document, batch.begins_document
    found: dict[Split, Ids] = {"train": Ids(), "val": Ids()}
    encodings = encode_texts([text for text, _ in batch.pieces])
    for (text, is_end), encoding in zip(batch.pieces, encodings, strict=True):
        part = found["val" if is_held_out(document) else "train"]
        if begins:
            part.ids.fromlist(around.begin)
        part.ids.fromlist(encoding)
        part.num_bytes += len(text.encode())
        part.special_tokens += sum(1 for _ in names.finditer(text))
        begins = is_end
        if is_end:
            part.ids.append(around.end)
            part.ends.append(len(part.ids))
            document += 1
    return found
