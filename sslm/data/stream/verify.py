"""Checksums of local shards, verified in each start of a run: in the background if that takes long.

Remote shards are verified as they are downloaded or found in the cache, ends of documents and plans as they are opened.
"""

import threading
from collections.abc import Sequence

from sslm.data.corpus.shards import BadShard, changed
from sslm.data.stream.stream import StreamSource
from sslm.system.files import is_sha256, sha256_of
from sslm.system.heartbeats import beat

SMALL_BYTES = 256 << 20
"""What is no larger is verified before the first step: it takes some tenths of a second."""


class Verifier:
    """A thread that hashes the local shards of some sources until it is done or closed."""

    def __init__(self, sources: Sequence[StreamSource]) -> None:
        self._shards = {
            source.corpus.folder / region.shard.file: (source, region.shard)
            for source in sources
            for region in source.regions
            if not source.corpus.is_remote and is_sha256(region.shard.sha256)  # else nobody vouches for all of it
        }
        self._stop = threading.Event()
        self._num_done = 0
        self._found: list[BadShard] = []
        self._thread = threading.Thread(target=self._run, name="verify shards", daemon=True)
        self._thread.start()
        if sum(source.corpus.token_file(shard)[1] for source, shard in self._shards.values()) <= SMALL_BYTES:
            self._thread.join()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def found(self) -> BadShard | None:
        """Return a bad shard that was not returned before, or None."""
        return self._found.pop(0) if self._found else None

    def wait(self) -> None:
        """Wait until every shard is verified."""
        while not self.is_done:
            before = self._num_done
            self._thread.join(timeout=1)
            if self._num_done > before:
                beat("verifying the corpus")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for path, (source, shard) in self._shards.items():
            if self._stop.is_set():
                return
            try:
                actual = sha256_of(path)
            except OSError:
                continue  # reading it will say so
            if actual != shard.sha256:
                self._found.append(bad := changed(path, actual, shard.sha256))
                bad.source = source.name
            self._num_done += 1
