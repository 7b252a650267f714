"""Writing a prepared corpus (shards.py says how it lies on disk)."""

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.labelled import Labelled
from sslm.data.corpus.shards import Corpus, Shard, Split, ends_file, write_index

SHARD_TOKENS = 1 << 27
"""Tokens per shard (256 MB in uint16)."""

COUNTS = ("num_tokens", "num_documents", "num_bytes")
"""What a shard counts, as `Shard` calls it."""


class CorpusWriter:
    """Writes a corpus into a folder: `add` tokens and ends, then `finish`. As a context it closes its files.

    Every shard of a split but the last has exactly `shard_tokens` tokens, however the tokens were added. What `sync`
    returns takes a writer of the same folder back to that point (`resume`).
    """

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.shard_tokens = shard_tokens
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.finished: list[Shard] = []
        self._open: dict[Split, _ShardWriter] = {}

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for shard in self._open.values():
            shard.close_files()

    def add(self, split: Split, ids: NDArray[Any], ends: NDArray[np.int64], num_bytes: int) -> None:
        """Append tokens; `ends` are offsets within `ids` just after documents that end there.

        If they span shards, each shard gets as large a part of `num_bytes` as of the tokens.
        """
        while len(ids) or len(ends):  # an empty document has an end and no ids
            shard = self._open.get(split) or self._begin(split)
            fits = min(self.shard_tokens - shard.num_tokens, len(ids))
            ended = int(np.searchsorted(ends, fits, side="right"))
            part_bytes = num_bytes * fits // max(len(ids), 1)
            shard.add(ids[:fits], ends[:ended], part_bytes)
            ids, ends, num_bytes = ids[fits:], ends[ended:] - fits, num_bytes - part_bytes
            if shard.num_tokens == self.shard_tokens:
                self.finished.append(self._open.pop(split).close())

    def _begin(self, split: Split) -> "_ShardWriter":
        number = sum(done.split == split for done in self.finished)
        shard = self._open[split] = _ShardWriter(self.folder, f"{split}-{number:05d}.bin", split, self.dtype)
        return shard

    def sync(self) -> dict[str, Any]:
        """Write all that was added to the disk, and return the state (plain JSON) that `resume` takes."""
        shards = self._open.values()
        return {"finished": [asdict(shard) for shard in self.finished], "open": [shard.sync() for shard in shards]}

    def resume(self, state: dict[str, Any]) -> None:
        """Cut off what was written since `sync` returned `state`; ValueError or OSError if less is there."""
        self.finished = [Shard(**shard) for shard in state["finished"]]
        itemsize = self.dtype.itemsize
        for done in self.finished:
            for file, size in ((done.file, done.num_tokens * itemsize), (ends_file(done.file), done.num_documents * 8)):
                if (self.folder / file).stat().st_size != size:
                    raise ValueError(f"{file}: not {size} bytes")
        for known in state["open"]:
            shard = _ShardWriter(self.folder, known["file"], known["split"], self.dtype, mode="r+b")
            self._open[shard.split] = shard
            shard.resume(**{name: known[name] for name in COUNTS})

    def add_whole(self, split: Split, ids: NDArray[Any], ends: NDArray[np.int64], num_bytes: int) -> None:
        """Append documents none of which goes on in another shard: one that has no room for all of them is closed."""
        shard = self._open.get(split)
        if shard is not None and shard.num_tokens + len(ids) > self.shard_tokens:
            self.finished.append(self._open.pop(split).close())
        self.add(split, ids, ends, num_bytes)

    def finish(
        self, tokenizer: str, tokenizer_sha256: str, source: list[dict[str, Any]], labelled: Labelled | None = None
    ) -> int:
        """Close the shards and write the index, which makes the folder a corpus; return its number of tokens."""
        self.finished += [shard.close() for shard in self._open.values()]
        self._open.clear()
        shards = sorted(self.finished, key=lambda shard: shard.split)  # within a split they are in order
        corpus = Corpus(
            self.folder,
            self.dtype.name,
            self.vocab_size,
            tokenizer,
            tokenizer_sha256,
            tuple(shards),
            source,
            labelled=labelled,
        )
        write_index(corpus)
        return corpus.num_tokens


class _ShardWriter:
    def __init__(self, folder: Path, file: str, split: Split, dtype: np.dtype[Any], mode: str = "wb") -> None:
        self.file, self.split, self.dtype = file, split, dtype
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self.hash, self.ends_hash = hashlib.sha256(), hashlib.sha256()
        self.tokens: BinaryIO = open(folder / file, mode)  # type: ignore[assignment]  # noqa: SIM115 - closed in close
        try:
            self.ends: BinaryIO = open(folder / ends_file(file), mode)  # type: ignore[assignment]  # noqa: SIM115
        except OSError:
            self.tokens.close()
            raise

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

    def sync(self) -> dict[str, Any]:
        for stream in (self.tokens, self.ends):
            stream.flush()
            os.fsync(stream.fileno())
        return {"file": self.file, "split": self.split, **{name: getattr(self, name) for name in COUNTS}}

    def resume(self, num_tokens: int, num_documents: int, num_bytes: int) -> None:
        _keep(self.tokens, num_tokens * self.dtype.itemsize, self.hash)
        _keep(self.ends, num_documents * 8, self.ends_hash)
        self.num_tokens, self.num_documents, self.num_bytes = num_tokens, num_documents, num_bytes

    def close(self) -> Shard:
        known = self.sync()
        self.close_files()
        return Shard(**known, sha256=self.hash.hexdigest(), ends_sha256=self.ends_hash.hexdigest())

    def close_files(self) -> None:
        self.tokens.close()
        self.ends.close()


def _keep(stream: BinaryIO, size: int, digest: Any) -> None:
    """Hash a file's first `size` bytes, and drop the rest."""
    left = size
    while left:
        chunk = stream.read(min(left, 1 << 22))
        if not chunk:
            raise ValueError(f"{stream.name}: shorter than {size} bytes")
        digest.update(chunk)
        left -= len(chunk)
    stream.truncate(size)
    stream.seek(size)
