"""Documents as token ids, read one after the other in flat memory: what a trained model is measured on.

Nothing is prepared: text is tokenised while it is read, corpora here or at a URL and token files of other tools are
read as they are. What preparation puts around a document, a BOS token and its end, is left out: whoever reads puts
there what a model wants.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data import foreign
from sslm.data.corpus import remote
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.documents import Source, open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.encode import batches, encode_pieces, without_empty
from sslm.data.corpus.shards import Corpus, Shard, is_corpus, open_corpus
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, beginning, end_of_document, num_ids
from sslm.data.stream.vocabulary import text_bytes
from sslm.data.stream.windows import Region, whole
from sslm.system.errors import UserError, without_secrets
from sslm.system.terminal import preparation_progress

CHUNK_TOKENS = 1 << 16
AS_PREPARED = TokenRules()


class TokenPiece(NamedTuple):
    """A document, or a part of a long one."""

    document: int
    """Number of the document, from 0."""
    ids: NDArray[np.int64]
    num_bytes: float
    """Bytes of the text in UTF-8; not a number if nobody knows."""
    is_end: bool
    """Whether the document ends with it."""


@dataclass(frozen=True)
class TokenDocuments:
    """Documents that can be read, any number of times."""

    name: str
    path: str
    """Where they come from, without secrets."""
    pieces: Callable[[], Iterator[TokenPiece]]
    record: list[dict[str, Any]]
    """What they are made of, contents hashed."""
    num_bytes: int | None = None
    """Bytes to read, if it is known."""
    num_tokens: int | None = None
    """Tokens to read, if it is known."""


@dataclass(frozen=True)
class TextOptions:
    """How text is found in files, and where what is downloaded goes."""

    cache_dir: Path
    text_field: str = "text"
    document_separator: str | None = None
    rules: TokenRules = AS_PREPARED


def open_documents(path: str, name: str, tokenizer: Tokenizer, options: TextOptions) -> TokenDocuments:
    """Open whatever `--data.train` takes.

    Args:
        path: text, a corpus here or at a URL, or token files of other tools.
        name: what the documents are called.
        tokenizer: whose ids are wanted; a corpus must have been prepared with it.
        options: how text is read.

    Raises:
        UserError: nothing there, it is damaged, or it was prepared with another tokenizer.
    """
    if path != EMBEDDED and (corpus := _corpus_at(path, tokenizer, options)) is not None:
        check_tokenizer(path, corpus, tokenizer)
        return of_regions(name, path, corpus, whole(corpus), tokenizer, options.rules)
    source = open_source(None if path == EMBEDDED else path, options.text_field, options.document_separator)
    pieces = partial(_of_text, source, tokenizer, options.rules)
    return TokenDocuments(name, path, pieces, source.record, num_bytes=source.num_bytes)


def _corpus_at(path: str, tokenizer: Tokenizer, options: TextOptions) -> Corpus | None:
    if remote.is_remote(path):
        return remote.open_remote_corpus(path, options.cache_dir, None)
    if is_corpus(path):
        return open_corpus(path)
    if foreign.recognise(path, options.text_field) is None:
        return None
    return foreign.open_foreign(
        path,
        options.cache_dir,
        end_id=end_of_document(tokenizer),
        text_field=options.text_field,
        progress=partial(preparation_progress, f"Reading {path}"),
    )


def check_tokenizer(path: str, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Raise UserError if a corpus' ids are not the tokenizer's; tokens that were appended later may differ."""
    made_by = corpus.tokenizer_sha256
    if not made_by:
        foreign.check_vocabulary(corpus, path, "the model's tokenizer", num_ids(tokenizer))
    elif made_by not in {tokenizers.identity(tokenizer, end) for end in (None, corpus.vocab_size)}:
        raise UserError(
            f"{without_secrets(path)}: was prepared with another tokenizer ({corpus.tokenizer}) than the model's; give "
            f"the text itself, or prepare it with the model's tokenizer: sslm prepare TEXT --tokenizer MODEL --out DIR"
        )


def _of_text(source: Source, tokenizer: Tokenizer, rules: TokenRules) -> Iterator[TokenPiece]:
    with closing(encode_pieces(batches(without_empty(source.pieces()), 0), tokenizer, rules)) as encoded:
        for batch, texts in encoded:
            document = batch.first_document
            for (text, is_end), ids in zip(batch.pieces, texts, strict=True):
                yield TokenPiece(document, np.array(ids, np.int64), len(text.encode()), is_end)
                document += is_end


def of_regions(
    name: str, path: str, corpus: Corpus, regions: Sequence[Region], tokenizer: Tokenizer, rules: TokenRules
) -> TokenDocuments:
    """Read some regions of a corpus; a document that is cut at a region's edge counts as one there."""
    size = sum(map(len, regions))
    pieces = partial(_of_corpus, corpus, regions, tokenizer, beginning(tokenizer, rules))
    record = [{"corpus": corpus.sha256, "tokens": size}]
    return TokenDocuments(name, without_secrets(path), pieces, record, num_tokens=size)


def _of_corpus(
    corpus: Corpus, regions: Sequence[Region], tokenizer: Tokenizer, begin: list[int]
) -> Iterator[TokenPiece]:
    bytes_of, end_id = _Bytes(corpus, tokenizer), end_of_document(tokenizer)
    document, is_new = 0, True
    for region, following in zip(regions, [*regions[1:], None], strict=True):
        corpus.read_ahead([region.shard, *([following.shard] if following else [])])
        bytes_per_id, tokens = bytes_of(region.shard), corpus.tokens(region.shard)
        goes_on = following is not None and _continues(corpus, region, following)
        for start, end, is_end in _stretches(region, corpus.document_ends(region.shard), goes_on):
            ids = tokens[start:end].astype(np.int64)
            num_bytes = float(bytes_per_id[ids].sum())
            ids = ids[1:] if is_new and ids[:1].tolist() == begin else ids
            ids = ids[:-1] if is_end and ids[-1:].tolist() == [end_id] else ids
            if len(ids) or not (is_new and is_end):
                yield TokenPiece(document, ids, num_bytes, is_end)
                document += is_end
                is_new = is_end


def _continues(corpus: Corpus, region: Region, following: Region) -> bool:
    """Whether the second region begins where the first ends."""
    shards = corpus.shards
    if region.end < region.shard.num_tokens:
        return following.shard == region.shard and following.start == region.end
    after = shards.index(region.shard) + 1
    is_next = after < len(shards) and shards[after] == following.shard and following.start == 0
    return is_next and following.shard.split == region.shard.split


def _stretches(region: Region, ends: NDArray[np.int64], goes_on: bool) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether a document ends there) of a region's documents, long ones in chunks."""
    first, last = np.searchsorted(ends, [region.start, region.end], side="right")
    inside = ends[first:last].tolist()
    cuts = [(end, True) for end in inside]
    if not inside or inside[-1] < region.end:
        cuts.append((region.end, not goes_on))
    start = region.start
    for end, is_end in cuts:
        while end - start > CHUNK_TOKENS:
            yield start, start + CHUNK_TOKENS, False
            start += CHUNK_TOKENS
        yield start, end, is_end
        start = end


class _Bytes:
    """Bytes of text that the ids of a corpus' shards stand for.

    With byte-level tokenizers an entry tells them. Others lose some of the text (capitals, unknown words): what their
    entries tell is scaled to the bytes that the shard's text had, as the index records them.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.corpus = corpus
        self.table, self.is_exact = text_bytes(tokenizer)

    def __call__(self, shard: Shard) -> NDArray[np.float64]:
        if self.is_exact:
            return self.table
        if not shard.num_bytes:
            return np.full_like(self.table, np.nan)
        tokens = self.corpus.tokens(shard)
        chunks = (tokens[start : start + (1 << 22)] for start in range(0, len(tokens), 1 << 22))
        counted = sum(float(np.bincount(chunk, minlength=len(self.table)) @ self.table) for chunk in chunks)
        return self.table * (shard.num_bytes / counted) if counted else self.table


def first_documents(pieces: Iterable[TokenPiece], limit: int | None) -> Iterator[TokenPiece]:
    """Read the first `limit` documents, or all."""
    for piece in pieces:
        if limit is not None and piece.document >= limit:
            return
        yield piece
