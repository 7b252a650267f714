"""A prepared corpus on disk: flat shards of token ids, where documents end, and an index that vouches for them.

    corpus/
      index.json          counts, checksums, tokenizer identity, record of the source; written last
      tokenizer/          the tokenizer, as transformers saves it
      train-00000.bin     token ids, uint16 or uint32, end-of-document ids included
      train-00000.ends    int64 per document: the offset just after its last token
      val-00000.bin …     documents held out of training

The sequence length is not fixed here: windows are cut when the corpus is read. A document longer than a shard goes on in
the next one and ends there.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sslm.system.errors import UserError
from sslm.system.files import sha256_of, write_atomically

FORMAT = 1
SAMPLED = "sampled:"
"""Before the hash of a file of which only pieces were read: it tells corpora apart, and is no checksum."""

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Shard:
    """One file of tokens, and one of documents' ends beside it."""

    file: str
    split: Split
    num_tokens: int
    num_documents: int
    """Documents that end in it."""
    num_bytes: int
    """Of the text, UTF-8; 0 where nobody knows."""
    sha256: str
    """Of the tokens' file; empty where nobody vouches for it; `sampled:…` where only pieces of it were read (data/foreign)."""
    ends_sha256: str = ""
    """Of the file of ends."""
    offset: int = 0
    """Bytes before the first token."""
    ends: str = ""
    """File of documents' ends, where it does not lie beside the tokens."""


class BadShard(UserError):
    """A file of a corpus that is not what the index says, however often it was read."""

    def __init__(self, file: str, message: str, source: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.source = source
        """Name of the source in the mixture, once it is known."""

    def __reduce__(self) -> tuple[type["BadShard"], tuple[str, str, str]]:  # else it can't leave a loader's process
        return BadShard, (self.file, str(self), self.source)


class Files(Protocol):
    """Where the shards of a corpus lie: in a folder here, or at a URL with a cache before it."""

    @property
    def is_remote(self) -> bool:
        """Whether files have to be brought here before they can be read."""

    def fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
        """A file's path on this machine, brought here first if need be. Open it at once: a cache may need its room.

        Raises:
            BadShard: it is missing, has another size, or (where it was brought) another checksum.
        """

    def read_ahead(self, files: Iterable[tuple[str, int, str]]) -> None:
        """Begin to bring (file, num_bytes, sha256) here, in this order, and return at once."""

    def close(self) -> None:
        """End what works in the background."""


@dataclass(frozen=True)
class LocalFiles:
    """Files of a folder on this machine; sizes are checked when they are fetched."""

    folder: Path
    is_remote: bool = False

    def fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
        path = self.folder / file
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            raise BadShard(
                file,
                f"{path}: {'missing' if found is None else f'{found} bytes, not {num_bytes}'}; "
                f"the corpus is damaged, prepare it again",
            )
        return path

    def read_ahead(self, files: Iterable[tuple[str, int, str]]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Token files are memory-mapped when first read."""

    folder: Path
    """Holds index.json and tokenizer/, on this machine."""
    dtype: str
    vocab_size: int
    tokenizer: str
    """As it was given: a name, a folder, or bpe:SIZE; empty for ids that came without one."""
    tokenizer_sha256: str
    shards: tuple[Shard, ...]
    source: list[dict[str, Any]] = field(default_factory=list)
    files: Files | None = None
    """Where the shards lie; None: in `folder`."""

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

    @functools.cached_property
    def _files(self) -> Files:
        return self.files or LocalFiles(self.folder)

    @property
    def is_remote(self) -> bool:
        return self._files.is_remote

    def token_file(self, shard: Shard) -> tuple[str, int, str]:
        """(file, bytes, sha256) of a shard's tokens; a hash of samples vouches for no file."""
        vouched = "" if shard.sha256.startswith(SAMPLED) else shard.sha256
        return shard.file, shard.offset + shard.num_tokens * np.dtype(self.dtype).itemsize, vouched

    def ends_file(self, shard: Shard) -> tuple[str, int, str]:
        """(file, bytes, sha256) of a shard's documents' ends."""
        return shard.ends or ends_file(shard.file), shard.num_documents * 8, shard.ends_sha256

    def tokens(self, shard: Shard) -> NDArray[Any]:
        """[num_tokens] ids, read from disk as they are touched."""
        return self._map(self.token_file(shard), self.dtype, shard.num_tokens, shard.offset)

    def document_ends(self, shard: Shard) -> NDArray[np.int64]:
        """[num_documents] offsets just after each document's last token."""
        if not shard.num_documents:  # an empty file can't be mapped
            return np.empty(0, np.int64)
        return self._map(self.ends_file(shard), "int64", shard.num_documents)

    def _map(self, file: tuple[str, int, str], dtype: str, length: int, offset: int = 0) -> NDArray[Any]:
        while True:
            path = self._files.fetch(*file)
            try:
                return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(length,))
            except FileNotFoundError:  # in a cache, it has just made room for another
                continue

    def close(self) -> None:
        """End what works in the background for it."""
        self._files.close()

    def read_ahead(self, shards: Iterable[Shard]) -> None:
        """Begin to bring these shards here."""
        files = [[self.token_file(shard), self.ends_file(shard)] for shard in shards]
        self._files.read_ahead(file for both in files for file in both if file[1])


def is_corpus(folder: str | Path) -> bool:
    return (Path(folder) / "index.json").is_file()


def open_corpus(folder: str | Path, files: Files | None = None, check_sizes: bool = True) -> Corpus:
    """Open a prepared corpus; contents are not read.

    Args:
        folder: holds index.json and tokenizer/.
        files: where the shards are; default: in `folder`.
        check_sizes: of files on this machine; else a bad one is found when it is first read.

    Raises:
        UserError: an index that can't be read, of a newer format, or that its files don't match.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["format"] > FORMAT:
            raise UserError(
                f"{folder}: prepared by a newer sslm (format {index['format']}); upgrade, or prepare it again"
            )
        if index["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"dtype {index['dtype']}")
        shards = tuple(Shard(**shard) for shard in index["shards"])
        corpus = Corpus(
            folder,
            index["dtype"],
            index["vocab_size"],
            index["tokenizer"],
            index["tokenizer_sha256"],
            shards,
            index["source"],
            files,
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}/index.json: damaged ({type(error).__name__}); prepare the corpus again") from None
    if check_sizes and not corpus.is_remote:
        for shard in shards:
            for file in (corpus.token_file(shard), corpus.ends_file(shard)):
                corpus._files.fetch(*file)
    return corpus


def write_index(folder: Path, corpus: Corpus) -> None:
    """Make the folder a corpus: to be done last, in a folder that nobody reads yet."""
    vouched = [file for file in sorted((folder / "tokenizer").glob("*")) if file.is_file()]
    index = {
        "tokenizer_files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in vouched},
        "format": FORMAT,
        "dtype": corpus.dtype,
        "vocab_size": corpus.vocab_size,
        "tokenizer": corpus.tokenizer,
        "tokenizer_sha256": corpus.tokenizer_sha256,
        "shards": [asdict(shard) for shard in corpus.shards],
        "source": corpus.source,
    }
    write_atomically(folder / "index.json", json.dumps(index, indent=1) + "\n")


def ends_file(token_file: str) -> str:
    return token_file.removesuffix(".bin") + ".ends"
