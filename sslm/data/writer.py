"""Writing a prepared corpus (shards.py says how it lies on disk)."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.shards import FORMAT, Shard, Split, ends_file
from sslm.files import sha256_of

SHARD_TOKENS = 1 << 27
"""Tokens per shard (256 MB in uint16)."""


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
        vouched = [file for file in sorted((self.folder / "tokenizer").glob("*")) if file.is_file()]
        index = {
            "tokenizer_files": {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in vouched
            },
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
        self.hash, self.ends_hash = hashlib.sha256(), hashlib.sha256()
        self.tokens = open(folder / file, "wb")  # noqa: SIM115 - closed in close
        self.ends = open(folder / ends_file(file), "wb")  # noqa: SIM115

    def add(self, ids: NDArray[Any], ends: NDArray[np.int64], num_bytes: int) -> None:
        raw = ids.astype(self.dtype).tobytes()
        self.tokens.write(raw)
        self.hash.update(raw)
        raw = (ends + self.num_tokens).astype(np.int64).tobytes()
        self.ends.write(raw)
        self.ends_hash.update(raw)
        self.num_tokens += len(ids)
        self.num_documents += len(ends)
        self.num_bytes += num_bytes

    def close(self) -> Shard:
        for stream in (self.tokens, self.ends):
            stream.flush()
            os.fsync(stream.fileno())
        self.close_files()
        return Shard(self.file, self.split, self.num_tokens, self.num_documents, self.num_bytes, self.hash.hexdigest(),
                     self.ends_hash.hexdigest())  # fmt: skip

    def close_files(self) -> None:
        self.tokens.close()
        self.ends.close()
