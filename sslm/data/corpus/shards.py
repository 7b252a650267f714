"""A prepared corpus on disk: flat shards of token ids, where documents end, and an index that vouches for them.

docs/formats.md, "Corpus on the disk", lists files and fields. Windows are cut when the corpus is read, so a corpus
serves any sequence length.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.labelled import Labelled, parse_labelled, to_tree
from sslm.system.errors import UserError, short
from sslm.system.files import is_plain_name, is_sha256, is_size, one_maker, sha256_of, write_atomically
from sslm.system.terminal import plural

FORMAT = 1
SAMPLED = "sampled:"
"""Prefix of the hash of a file of which only pieces were read: it tells corpora apart, and is no checksum."""

INDEXED = ("dtype", "vocab_size", "tokenizer", "tokenizer_sha256")
"""Fields of `Corpus` that stand in index.json as they are."""

INDEX_BYTES = 256 << 20
"""Longest index that is read: about a million shards."""

File = tuple[str, int, str]
"""(name, bytes, SHA-256, or an empty string if it is unknown)"""

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Shard:
    """One file of tokens, and one of documents' ends beside it."""

    file: str
    split: Split
    num_tokens: int
    num_documents: int
    """Number of documents that end in it."""
    num_bytes: int
    """Bytes of the text in UTF-8, or 0 if unknown."""
    sha256: str
    """Hash of the tokens' file, empty if unknown, or `sampled:…` if only pieces of it were read (data/foreign)."""
    ends_sha256: str = ""
    """Hash of the file of ends."""
    offset: int = 0
    """Bytes before the first token."""
    ends: str = ""
    """File of documents' ends, if it does not lie beside the tokens."""


class BadShard(UserError):
    """A file of a corpus that is not what the index says, however often it was read."""

    def __init__(self, file: str, message: str, source: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.source = source
        """Name of the source in the mixture, once it is known."""

    def __reduce__(self) -> tuple[type["BadShard"], tuple[str, str, str]]:  # else it can't leave a loader's process
        return BadShard, (self.file, str(self), self.source)


def changed(path: Path, actual: str, expected: str) -> BadShard:
    """The error for a file with another SHA-256 than the index vouches for."""
    what = f"{path}: is not what it was when it was prepared (SHA-256 {actual[:12]}…, not {expected[:12]}…)"
    return BadShard(path.name, f"{what}; the corpus is damaged, prepare it again")


def resized(file: str, path: Path, actual: int | None, expected: int) -> BadShard:
    """The error for a shard's file at a path, with other bytes than the index says; None of them if it is missing."""
    what = "missing" if actual is None else f"{actual} bytes, not {expected}"
    return BadShard(file, f"{path}: {what}; the corpus is damaged, prepare it again")


class Files(Protocol):
    """The files of a corpus at a URL, with a cache on this machine (`remote`)."""

    def fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
        """Find a file in the cache, downloading it first if need be. Open it at once: others may need its room."""

    def read_ahead(self, files: Iterable[File]) -> None:
        """Begin to download files, in this order, and return at once."""

    def close(self) -> None:
        """End background threads."""


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Token files are memory-mapped when first read."""

    folder: Path
    """Folder on this machine that holds index.json and tokenizer/."""
    dtype: str
    vocab_size: int
    tokenizer: str
    """A name, a folder, or bpe:SIZE, as it was typed; empty for ids without a tokenizer."""
    tokenizer_sha256: str
    shards: tuple[Shard, ...]
    source: list[dict[str, Any]] = field(default_factory=list)
    tokenizer_files: tuple[File, ...] = ()
    """Files of the tokenizer's folder, or none if nobody vouches for them."""
    files: Files | None = None
    """Where the shards are downloaded from, or None if they lie in `folder`."""
    labelled: Labelled | None = None
    """What its records are, if it holds labelled examples instead of text."""

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all tokens, in order, and of the tokenizer that made them."""
        what = [self.tokenizer_sha256, self.dtype, [[shard.split, shard.sha256] for shard in self.shards]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        return sum(shard.num_bytes for shard in self.shards) / max(self.num_tokens, 1)

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def is_remote(self) -> bool:
        return self.files is not None

    def token_file(self, shard: Shard) -> File:
        """Describe a shard's tokens; a hash of samples is no checksum."""
        vouched = "" if shard.sha256.startswith(SAMPLED) else shard.sha256
        return shard.file, shard.offset + shard.num_tokens * np.dtype(self.dtype).itemsize, vouched

    def ends_file(self, shard: Shard) -> File:
        """Describe a shard's documents' ends."""
        return shard.ends or ends_file(shard.file), shard.num_documents * 8, shard.ends_sha256

    def tokens(self, shard: Shard) -> NDArray[Any]:
        """Map a shard's ids, [num_tokens]."""
        return self._map(self.token_file(shard), self.dtype, shard.num_tokens, shard.offset)

    def document_ends(self, shard: Shard) -> NDArray[np.int64]:
        """Map the offsets just after each document's last token, [num_documents].

        Raises:
            BadShard: they are not those that the index vouches for; they are hashed once in each process.
        """
        if not shard.num_documents:  # an empty file can't be mapped
            return np.empty(0, np.int64)
        file, _, sha256 = self.ends_file(shard)
        ends = self._map(self.ends_file(shard), "int64", shard.num_documents)
        if sha256 and file not in self._hashed:
            if (actual := hashlib.sha256(ends.data).hexdigest()) != sha256:
                raise changed(self.folder / file, actual, sha256)
            self._hashed.add(file)
        return ends

    @functools.cached_property
    def _hashed(self) -> set[str]:
        return set()

    def _fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
        if self.files is not None:
            return self.files.fetch(file, num_bytes, sha256)
        path = self.folder / file
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            raise resized(file, path, found, num_bytes)
        return path

    def _map(self, file: File, dtype: str, length: int, offset: int = 0) -> NDArray[Any]:
        while True:
            path = self._fetch(*file)
            try:
                return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(length,))
            except FileNotFoundError:  # the cache has just removed it
                continue

    def close(self) -> None:
        """End background threads."""
        if self.files is not None:
            self.files.close()

    def read_ahead(self, shards: Iterable[Shard]) -> None:
        """Begin to download some shards."""
        if self.files is not None:
            files = [file for shard in shards for file in (self.token_file(shard), self.ends_file(shard))]
            self.files.read_ahead(file for file in files if file[1])


def is_corpus(folder: str | Path) -> bool:
    return (Path(folder) / "index.json").is_file()


def open_corpus(
    folder: str | Path, files: Files | None = None, check_sizes: bool = True, is_cached: bool = False
) -> Corpus:
    """Open a prepared corpus; contents are not read.

    Args:
        folder: folder of index.json and tokenizer/.
        files: where the shards are downloaded from, or None if they lie in `folder`.
        check_sizes: whether to check local files' sizes now; else a bad one is found when it is first read.
        is_cached: whether the index is one of our own in the cache: its shards may lie anywhere on this machine.

    Raises:
        UserError: the index can't be read, is of a newer format, or doesn't match the files.
    """
    folder = Path(folder)
    with open(folder / "index.json", "rb") as stream:
        index = parse_index(stream.read(INDEX_BYTES), f"{folder}/index.json", is_cached)
    corpus = Corpus(folder, **index, files=files)
    if check_sizes and not corpus.is_remote:
        for shard in corpus.shards:
            corpus._fetch(*corpus.token_file(shard))
            corpus._fetch(*corpus.ends_file(shard))
    return corpus


def parse_index(content: bytes, where: str, is_cached: bool = False) -> dict[str, Any]:
    """Check an index that may come from anywhere, and return the fields of its `Corpus`.

    Raises:
        UserError: a field is missing, or can't be what sslm wrote; `where` is what the sentence calls the index.
    """
    try:
        index = json.loads(content)
        if not is_size(index["format"]):
            raise ValueError(f"format {short(index['format'])}")
        if index["format"] > FORMAT:
            newer = f"prepared by a newer sslm (format {index['format']})"
            raise UserError(f"{where}: {newer}; upgrade, or prepare it again")
        shards = tuple(Shard(**shard) for shard in index["shards"])
        files = tuple((name, file["bytes"], file["sha256"]) for name, file in index.get("tokenizer_files", {}).items())
        fields = {key: index[key] for key in (*INDEXED, "source")} | {
            "shards": shards,
            "tokenizer_files": files,
            "labelled": parse_labelled(index.get("labelled")),
        }
        if wrong := next(_unsound(fields, is_cached), ""):
            raise ValueError(wrong)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        why = f"{type(error).__name__}: {short(error)}"
        raise UserError(f"{where}: damaged, or no index of a corpus ({why}); prepare it again") from None
    return fields


def _unsound(fields: dict[str, Any], is_cached: bool) -> Iterator[str]:
    """Name what no index of ours has: what is read, allocated or downloaded by it stays within bounds."""
    dtype, vocab_size, source = (fields[key] for key in ("dtype", "vocab_size", "source"))
    if dtype not in ("uint16", "uint32"):
        yield f"dtype {short(dtype)}"
    if not is_size(vocab_size) or not 0 < vocab_size <= 1 << (8 * np.dtype(dtype).itemsize):
        yield f"vocab_size {short(vocab_size)}"
    if not isinstance(fields["tokenizer"], str) or not is_hash(fields["tokenizer_sha256"]):
        yield f"tokenizer {short(fields['tokenizer'])}"
    if not isinstance(source, list) or not all(isinstance(entry, dict) for entry in source):
        yield f"source {short(source)}"
    for name, num_bytes, sha256 in fields["tokenizer_files"]:
        if not is_plain_name(name) or not is_size(num_bytes) or not is_sha256(sha256):
            yield f"tokenizer file {short(name)}"
    for shard in fields["shards"]:
        for name, is_sound in SOUND.items():
            value = getattr(shard, name)
            if not is_sound(value) and not (is_cached and name == "file"):
                yield f"{name} {short(value)} of a shard"
        if not shard.num_tokens or (shard.num_documents > shard.num_tokens and not is_cached):  # empty ones of others
            yield f"{plural(shard.num_documents, 'document')} in {plural(shard.num_tokens, 'token')}"
    names = [name for shard in fields["shards"] for name in (shard.file, shard.ends or ends_file(shard.file))]
    if len(set(names)) < len(names):
        yield "the same file twice"


def is_hash(value: Any) -> bool:
    return value == "" or is_sha256(value)


SOUND: dict[str, Callable[[Any], bool]] = {
    "file": is_plain_name,
    "split": lambda split: split in ("train", "val"),
    "num_tokens": is_size,
    "num_documents": is_size,
    "num_bytes": is_size,
    "offset": is_size,
    "sha256": lambda sha256: is_hash(str(sha256).removeprefix(SAMPLED)),
    "ends_sha256": is_hash,
    "ends": lambda name: name == "" or is_plain_name(name),
}
"""Field of `Shard` -> whether a value is one that it may have."""


def cached_corpus(folder: Path, make: Callable[[], object]) -> Corpus:
    """Open a corpus in the cache, making it first if need be. Any number of processes may call at once."""
    if corpus := _sound_corpus(folder):
        return corpus
    with one_maker(folder):
        if corpus := _sound_corpus(folder):
            return corpus
        shutil.rmtree(folder, ignore_errors=True)
        make()
        return open_corpus(folder, is_cached=True)


def _sound_corpus(folder: Path) -> Corpus | None:
    if is_corpus(folder):
        with suppress(UserError):  # damaged: make it again
            return open_corpus(folder, is_cached=True)
    return None


def write_index(corpus: Corpus) -> None:
    """Write the index, which makes a folder a corpus: the last thing to write."""
    vouched = [file for file in sorted(corpus.tokenizer_folder.glob("*")) if file.is_file()]
    index = {
        "tokenizer_files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in vouched},
        "format": FORMAT,
        **{key: getattr(corpus, key) for key in INDEXED},
        "shards": [asdict(shard) for shard in corpus.shards],
        "source": corpus.source,
        **({} if corpus.labelled is None else {"labelled": to_tree(corpus.labelled)}),
    }
    write_atomically(corpus.folder / "index.json", json.dumps(index, indent=1) + "\n")


def ends_file(token_file: str) -> str:
    return token_file.removesuffix(".bin") + ".ends"
