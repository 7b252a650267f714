"""Checksums of local shards, verified while the run begins: hashing a large corpus takes minutes.

Remote shards are verified as they are downloaded.
"""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sslm.data.corpus.shards import BadShard
from sslm.data.stream.stream import StreamSource


class Verifier:
    """A thread that hashes the local shards of some sources until it is done or closed."""

    def __init__(self, sources: Sequence[StreamSource], sha256: Callable[[Path], str]) -> None:
        self._sources, self._sha256 = sources, sha256
        self._stop = threading.Event()
        self._found: list[BadShard] = []
        self._thread = threading.Thread(target=self._run, name="verify shards", daemon=True)
        self._thread.start()

    def found(self) -> BadShard | None:
        """Return a bad shard that was not returned before, or None."""
        return self._found.pop(0) if self._found else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for source in self._sources:
            for region in source.regions:
                if self._stop.is_set():
                    return
                if not source.corpus.is_remote:
                    self._verify(source, region.shard.file, region.shard.sha256)

    def _verify(self, source: StreamSource, file: str, expected: str) -> None:
        if not re.fullmatch("[0-9a-f]{64}", expected):
            return  # nobody vouches for all of it
        path = source.corpus.folder / file
        try:
            actual = self._sha256(path)
        except OSError:
            return  # reading it will say so
        if actual != expected:
            what = f"{path}: is not what it was when it was prepared (SHA-256 {actual[:12]}…, not {expected[:12]}…)"
            self._found.append(BadShard(file, f"{what}; the corpus is damaged, prepare it again", source.name))
