"""A prepared corpus on disk: flat shards of token ids, where documents end, and an index that vouches for them.

    corpus/
      index.json          counts, checksums, tokenizer identity, record of the source; written last
      tokenizer/          the tokenizer, as transformers saves it
      train-00000.bin     token ids, uint16 or uint32, end-of-document ids included
      train-00000.ends    int64 per document: the offset just after its last token
      val-00000.bin …     documents held out of training

The sequence length is not fixed here: windows are cut when the corpus is read.
"""

import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslm.errors import UserError

FORMAT = 1
SHARD_TOKENS = 1 << 27
"""Tokens per shard (256 MB in uint16)."""

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Shard:
    """One file of tokens. `num_bytes`: of the text, UTF-8."""

    file: str
    split: Split
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Token files are memory-mapped when first read."""

    folder: Path
    dtype: str
    vocab_size: int
    tokenizer: str
    """As it was given: a name, a folder, or bpe:SIZE."""
    tokenizer_sha256: str
    shards: tuple[Shard, ...]
    source: list[dict[str, Any]] = field(default_factory=list)

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

    def tokens(self, shard: Shard) -> NDArray[Any]:
        """[num_tokens] ids, read from disk as they are touched."""
        return np.memmap(self.folder / shard.file, dtype=self.dtype, mode="r", shape=(shard.num_tokens,))

    def document_ends(self, shard: Shard) -> NDArray[np.int64]:
        """[num_documents] offsets just after each document's last token."""
        return np.memmap(self.folder / _ends_file(shard.file), dtype=np.int64, mode="r", shape=(shard.num_documents,))


def is_corpus(folder: str | Path) -> bool:
    return (Path(folder) / "index.json").is_file()


def open_corpus(folder: str | Path) -> Corpus:
    """Open a prepared corpus; file sizes are checked, contents are not read.

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
        corpus = Corpus(folder, index["dtype"], index["vocab_size"], index["tokenizer"], index["tokenizer_sha256"], shards,
                        index["source"])  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}/index.json: damaged ({type(error).__name__}); prepare the corpus again") from None
    for shard in shards:
        for file, size in ((shard.file, shard.num_tokens * np.dtype(corpus.dtype).itemsize),
                           (_ends_file(shard.file), shard.num_documents * 8)):  # fmt: skip
            found = (folder / file).stat().st_size if (folder / file).is_file() else None
            if found != size:
                raise UserError(f"{folder / file}: {'missing' if found is None else f'{found} bytes, not {size}'}; "
                                f"the corpus is damaged, prepare it again")  # fmt: skip
    return corpus


class CorpusWriter:
    """Writes a corpus into an empty folder: `add` tokens and ends, then `finish`. As a context it closes its files."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.finished: list[Shard] = []
        self._open: dict[Split, _ShardWriter] = {}

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for shard in self._open.values():
            shard.close_files()

    def add(self, split: Split, ids: NDArray[Any], ends: NDArray[np.int64], num_bytes: int) -> None:
        """Append tokens; `ends` are offsets within `ids` just after documents that end there."""
        shard = self._open.get(split)
        if shard is None:
            number = sum(done.split == split for done in self.finished)
            shard = self._open[split] = _ShardWriter(self.folder, f"{split}-{number:05d}.bin", split, self.dtype)
        shard.add(ids, ends, num_bytes)
        if shard.num_tokens >= SHARD_TOKENS:
            self.finished.append(self._open.pop(split).close())

    def finish(self, tokenizer: str, tokenizer_sha256: str, source: list[dict[str, Any]]) -> int:
        """Close the shards and write the index, which makes the folder a corpus; how many tokens it has."""
        self.finished += [shard.close() for shard in self._open.values()]
        self._open.clear()
        shards = sorted(self.finished, key=lambda shard: shard.file)
        index = {
            "format": FORMAT, "dtype": self.dtype.name, "vocab_size": self.vocab_size, "tokenizer": tokenizer,
            "tokenizer_sha256": tokenizer_sha256, "shards": [asdict(shard) for shard in shards], "source": source,
        }  # fmt: skip
        with open(self.folder / "index.json", "w") as stream:
            stream.write(json.dumps(index, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return sum(shard.num_tokens for shard in shards)


class _ShardWriter:
    def __init__(self, folder: Path, file: str, split: Split, dtype: np.dtype[Any]) -> None:
        self.file, self.split, self.dtype = file, split, dtype
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self.hash = hashlib.sha256()
        self.tokens = open(folder / file, "wb")  # noqa: SIM115 - closed in close
        self.ends = open(folder / _ends_file(file), "wb")  # noqa: SIM115

    def add(self, ids: NDArray[Any], ends: NDArray[np.int64], num_bytes: int) -> None:
        raw = ids.astype(self.dtype).tobytes()
        self.tokens.write(raw)
        self.hash.update(raw)
        self.ends.write((ends + self.num_tokens).astype(np.int64).tobytes())
        self.num_tokens += len(ids)
        self.num_documents += len(ends)
        self.num_bytes += num_bytes

    def close(self) -> Shard:
        for stream in (self.tokens, self.ends):
            stream.flush()
            os.fsync(stream.fileno())
        self.close_files()
        return Shard(self.file, self.split, self.num_tokens, self.num_documents, self.num_bytes, self.hash.hexdigest())

    def close_files(self) -> None:
        self.tokens.close()
        self.ends.close()


def _ends_file(token_file: str) -> str:
    return token_file.removesuffix(".bin") + ".ends"
