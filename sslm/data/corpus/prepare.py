"""Prepare a corpus from documents: once, atomically, and resumable after a kill.

A corpus in the making lies in `.NAME.tmp`, beside a journal. A kill, a signal or a crash leaves both, and the same
preparation goes on from the journal: the corpus is the same, byte for byte, however often it was interrupted and
however many threads the tokenizer has. A mistake of the user's or a full disk leaves nothing.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import sslm
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.documents import Source
from sslm.data.corpus.encode import batches, encode, give_back_memory, without_empty
from sslm.data.corpus.shards import FORMAT, Corpus, cached_corpus, open_corpus
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, TrainBPE, beginning
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.corpus.writer import SHARD_TOKENS, CorpusWriter
from sslm.system.errors import UserError, sentence_of
from sslm.system.files import fsync, one_maker, sha256_of, write_atomically
from sslm.system.terminal import Report, Reporting, no_progress, plural, say

SECONDS_BETWEEN_ENTRIES = 5.0
SECONDS_OF_A_TICK = 2.0
"""Longest tick of a file system's clock (FAT's)."""
JOURNAL = "journal.json"
MOST_REMARKS = 5
PLAIN = TokenRules()


@dataclass
class Journal:
    """How far a preparation came. What it counts was on the disk before the journal was."""

    identity: str
    """Hash of everything that decides what the corpus will hold."""
    tokenizer_sha256: str
    pieces: int = 0
    """Pieces read from the source, without empty documents."""
    documents: int = 0
    tokens: int = 0
    num_bytes: int = 0
    special_tokens: int = 0
    """Names of special tokens met in the text."""
    is_inside_document: bool = False
    """Whether the next piece goes on with a document."""
    shards: dict[str, Any] = field(default_factory=lambda: {"finished": [], "open": []})
    """CorpusWriter's state."""

    def write(self, folder: Path) -> None:
        write_atomically(folder / JOURNAL, json.dumps(asdict(self), indent=1) + "\n")


def prepare(
    source: Source,
    tokenizer: TrainBPE | Tokenizer,
    out: Path,
    report: Report,
    shard_tokens: int = SHARD_TOKENS,
    rules: TokenRules = PLAIN,
) -> Corpus:
    """Tokenise `source` into the folder `out`, which appears whole or not at all.

    `tokenizer` may be an order to train one on the source first; `report` is told of progress.

    Raises:
        UserError: `out` exists already, the source has no text, or it is bad.
    """
    with one_maker(out):
        if out.exists():
            raise UserError(f"{out}: already exists; remove it, or choose another folder")
        return _make(source, tokenizer, out, report, shard_tokens, rules)


def prepare_cached(
    source: Source,
    tokenizer: TrainBPE | Tokenizer,
    cache_dir: Path,
    rules: TokenRules = PLAIN,
    progress: Reporting = no_progress,
) -> Corpus:
    """Open a corpus in the cache, preparing it first if need be. Any number of processes may call at once."""
    folder = cache_dir / "corpora" / _identity(source, tokenizer, rules)[:20]

    def make() -> None:
        with progress() as report:
            _make(source, tokenizer, folder, report, SHARD_TOKENS, rules)

    return cached_corpus(folder, make)


def _identity(source: Source, tokenizer: TrainBPE | Tokenizer, rules: TokenRules) -> str:
    who = str(tokenizer) if isinstance(tokenizer, TrainBPE) else tokenizers.identity(tokenizer)
    return hashlib.sha256(json.dumps([FORMAT, source.record, who, rules], sort_keys=True).encode()).hexdigest()


def _make(
    source: Source, tokenizer: TrainBPE | Tokenizer, out: Path, report: Report, shard_tokens: int, rules: TokenRules
) -> Corpus:
    part = out.parent / f".{out.name}.tmp"
    how = [_identity(source, tokenizer, rules), shard_tokens, sslm.__version__]
    identity = hashlib.sha256(json.dumps(how).encode()).hexdigest()
    name = str(tokenizer if isinstance(tokenizer, TrainBPE) else tokenizer.name_or_path)
    try:
        begun = _begun(part, identity, shard_tokens)
        journal, known, writer = begun or _begin(part, identity, shard_tokens, source, tokenizer)
        with writer:
            if journal.pieces:
                share = _share(journal, source)
                so_far = plural(journal.documents, "document") if share is None else f"{share:.0%}"
                say(f"{source.name}: resuming at {so_far}")
            _tokenise(source, known, rules, writer, journal, report)
            if not writer.finish(name, journal.tokenizer_sha256, source.record):
                raise UserError(f"{source.name}: there is no text in it")
        _tell([*_remarks_on_tokens(source, known, rules, journal), *source.remarks.values()])
        os.rename(part / "corpus", out)
        fsync(out.parent)
    except Exception as error:
        if sentence_of(error):  # trying again would fail again; after anything else it may go on
            shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(part, ignore_errors=True)
    return open_corpus(out)


def _remarks_on_tokens(source: Source, tokenizer: Tokenizer, rules: TokenRules, journal: Journal) -> Iterator[str]:
    if begin := beginning(tokenizer, rules):
        name = tokenizer.convert_ids_to_tokens(begin[0])
        yield f"{source.name}: each document begins with {name}, as the tokenizer's template says (--data.bos template)"
    if number := journal.special_tokens:
        read = "parsed as tokens" if rules.special_tokens == "parse" else "read as plain text"
        names = plural(number, "special token")
        yield f"{source.name}: {names} written out in the text, {read} (--data.special_tokens plain or parse)"


def _tell(remarks: list[str]) -> None:
    for remark in remarks[:MOST_REMARKS]:
        say(remark)
    if more := remarks[MOST_REMARKS:]:
        say(f"and {plural(len(more), 'remark')} more like these")


Begun = tuple[Journal, Tokenizer, CorpusWriter]


def _begin(part: Path, identity: str, shard_tokens: int, source: Source, tokenizer: TrainBPE | Tokenizer) -> Begun:
    """Start anew: save the tokenizer, trained if need be, and an empty journal."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    if isinstance(tokenizer, TrainBPE):
        tokenizer = train_bpe(source.pieces(), tokenizer.size)
    folder = part / "corpus"
    tokenizer.save_pretrained(folder / "tokenizer")
    for path in (*folder.rglob("*"), folder, part):
        fsync(path)
    tokenizer = tokenizers.load(folder / "tokenizer")  # what is used later is used now
    journal = Journal(identity, tokenizers.identity(tokenizer))
    journal.write(part)
    return journal, tokenizer, CorpusWriter(folder, tokenizers.num_ids(tokenizer), shard_tokens)


def _begun(part: Path, identity: str, shard_tokens: int) -> Begun | None:
    """Open what an interrupted preparation of the same corpus left, if it is sound."""
    try:
        journal = Journal(**json.loads((part / JOURNAL).read_text()))
        if journal.identity != identity:
            return None
        folder = part / "corpus"
        tokenizer = tokenizers.load((folder / "tokenizer").resolve(strict=True))
        if tokenizers.identity(tokenizer) != journal.tokenizer_sha256:
            return None
        writer = CorpusWriter(folder, tokenizers.num_ids(tokenizer), shard_tokens)
        try:
            writer.resume(journal.shards)
        except BaseException:
            writer.__exit__()
            raise
        return journal, tokenizer, writer
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _share(journal: Journal, source: Source) -> float | None:
    return min(journal.num_bytes / source.num_bytes, 1.0) if source.num_bytes else None


def _tokenise(
    source: Source, tokenizer: Tokenizer, rules: TokenRules, writer: CorpusWriter, journal: Journal, report: Report
) -> None:
    documents, tokens = journal.documents, journal.tokens
    pieces = islice(without_empty(source.pieces()), journal.pieces, None)
    last_entry = time.monotonic()
    to_encode = batches(pieces, journal.documents, not journal.is_inside_document)
    with closing(encode(to_encode, tokenizer, rules)) as encoded:
        for batch, splits in encoded:
            for split, found in splits.items():
                ids, ends = np.frombuffer(found.ids, np.uint32), np.frombuffer(found.ends, np.int64)
                writer.add(split, ids, ends, found.num_bytes)
                journal.tokens += len(ids)
                journal.documents += len(ends)
                journal.num_bytes += found.num_bytes
                journal.special_tokens += found.special_tokens
            journal.pieces += len(batch.pieces)
            journal.is_inside_document = not batch.pieces[-1][1]
            if time.monotonic() - last_entry > SECONDS_BETWEEN_ENTRIES:
                journal.shards = writer.sync()
                journal.write(writer.folder.parent)
                give_back_memory()
                last_entry = time.monotonic()
            report(journal.documents - documents, journal.tokens - tokens, _share(journal, source))


def remembering_hash(cache_dir: Path) -> Callable[[Path], str]:
    """Make a function that hashes files (SHA-256), and remembers a hash while the file is the same to the system.

    That is its path, inode, size, and times of its last change: the second of these, ctime, nobody can set back. A file
    that changed a moment ago is not remembered, as it may change again within one tick of the file system's clock.
    """

    def sha256(file: Path) -> str:
        key, changed = _state_of(file)
        memo = cache_dir / "hashes" / key
        if memo.is_file() and len(known := memo.read_text()) == 64:
            return known
        started, digest = time.time(), sha256_of(file)
        if changed < started - SECONDS_OF_A_TICK and _state_of(file)[0] == key:
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, digest)
        return digest

    return sha256


def _state_of(file: Path) -> tuple[str, float]:
    """Hash what the system tells of a file, and return when it changed [seconds since the epoch]."""
    stat = file.stat()
    seen = [str(file.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest(), max(stat.st_mtime, stat.st_ctime)
