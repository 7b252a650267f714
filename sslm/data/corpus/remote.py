"""A prepared corpus at a URL: s3://, gs://, http(s)://, hf:// and whatever else fsspec reads as a folder.

Shards are downloaded whole into a cache on this machine (system/cache.py), once for all of its processes, verified on
the way, and mapped from there. The cached folder is named after the URL and the index's contents: a corpus that was
prepared again at the same URL gets another one.

    corpus = open_remote_corpus("s3://bucket/fineweb", Path("~/.cache/sslm").expanduser(), limit_bytes=200 << 30)

`s3://` takes endpoint and keys from the usual AWS variables.
"""

import contextlib
import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from sslm.data.corpus.shards import INDEX_BYTES, BadShard, Corpus, File, is_corpus, parse_index
from sslm.system.cache import Cache, claimed
from sslm.system.errors import UserError, without_secrets
from sslm.system.files import is_whole, sha256_of, write_atomically
from sslm.system.remote_folder import DOWNLOADS, RemoteFolder, Stopped

NUM_THREADS = 4
"""Number of download threads."""

CLOSE_SECONDS = 5.0


def is_remote(path: str) -> bool:
    """Whether a path is a URL.

    >>> is_remote("s3://bucket/corpus"), is_remote("data/corpus")
    (True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def open_remote_corpus(url: str, cache_dir: Path, limit_bytes: int | None) -> Corpus:
    """Download index and tokenizer, and open the corpus; shards are downloaded when they are read.

    Args:
        url: address of the corpus' folder.
        cache_dir: folder of the cache, `remote`, for all corpora.
        limit_bytes: largest size of all cached shards, or None for no limit.

    Raises:
        UserError: no corpus there, not permitted, a server that stays away, a damaged index, a limit too small.
    """
    if not url.partition("://")[2].strip("/"):
        raise UserError(f"{url}: no address; give the URL of a corpus's folder, such as s3://bucket/corpus")
    url = url.rstrip("/")
    cache = Cache(cache_dir / "remote", limit_bytes)
    cache.remove_leftovers()
    with contextlib.closing(RemoteFolder(url)) as server:
        try:
            index = b"".join(server.chunks("index.json", INDEX_BYTES))
        except FileNotFoundError:
            raise UserError(
                f"{without_secrets(url)}: no index.json there, so it is no prepared corpus; make one with: "
                f"sslm prepare TEXT --out DIR, and copy that folder there"
            ) from None
        fields = parse_index(index, f"{without_secrets(url)}/index.json")
        name = hashlib.sha256(without_secrets(url).encode() + b"\0" + index).hexdigest()[:20]
        folder = cache.folder / name
        with claimed(folder, seconds=-1):
            vouched = {folder / "tokenizer" / file: sha256 for file, _, sha256 in fields["tokenizer_files"]}
            if not is_corpus(folder) or not all(is_whole(file, sha256) for file, sha256 in vouched.items()):
                _write_folder(folder, server, index, fields["tokenizer_files"])
    corpus = Corpus(folder, **fields, files=(files := RemoteFiles(url, name, cache)))
    for shard in corpus.shards:
        files.check_room({shard.file: corpus.token_file(shard)[1]})
    return corpus


def _write_folder(folder: Path, server: RemoteFolder, index: bytes, tokenizer: Iterable[File]) -> None:
    """Download a corpus' tokenizer, then write its index, which says that the rest is there."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, num_bytes, sha256 in tokenizer:
        with open(folder / "tokenizer" / name, "wb") as stream:
            _download(server, (f"tokenizer/{name}", num_bytes, sha256), stream)
            stream.flush()
            os.fsync(stream.fileno())
    write_atomically(folder / "index.json", index.decode())


def _download(server: RemoteFolder, file: File, stream: IO[bytes]) -> None:
    """Download a file into a stream.

    Raises:
        BadShard: it is missing, or has another size or checksum each time.
    """
    name, num_bytes, sha256 = file
    where = f"{without_secrets(server.url)}/{name}"
    try:
        wrong = server.download(name, num_bytes, sha256, stream)
    except FileNotFoundError:
        raise BadShard(name, f"{where}: missing; copy the whole corpus there again") from None
    if wrong:
        raise BadShard(
            name,
            f"{where}: {wrong}, in {DOWNLOADS} downloads; it is damaged, or the corpus was replaced "
            f"while in use: copy the whole corpus there again",
        )


class RemoteFiles:
    """Shards at a URL, downloaded into a cache on this machine when they are read, or before.

    It can be pickled, and used after a fork: each process makes its own connections and threads. Over S3 and HTTP
    fsspec runs a thread in each process; `read_ahead` starts up to `num_threads`, which end when all is downloaded. All
    are daemons.
    """

    def __init__(self, url: str, corpus: str, cache: Cache, num_threads: int = NUM_THREADS) -> None:
        self.url, self.corpus, self.cache, self.num_threads = url, corpus, cache, num_threads
        self._by_process: dict[int, _Here] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_by_process": {}}

    @property
    def _here(self) -> "_Here":
        process = os.getpid()
        return self._by_process.get(process) or self._by_process.setdefault(process, _Here(self.url))

    def fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
        """Find a file in the cache, downloading it first if need be. Open it at once: others may need its room.

        Raises:
            BadShard: it is missing, or had another size or checksum in `DOWNLOADS` downloads.
            UserError: no permission, no answer, or a cache too small.
            OSError: the disk is full.
        """
        here, wanted = self._here, (file, num_bytes, sha256)
        if not self._is_here(here, wanted):
            self.check_room({**here.window, file: num_bytes})
            self._bring(here, wanted, wait=True)
        return self._path(wanted)

    def _is_here(self, here: "_Here", file: File) -> bool:
        """Whether the cache has a file whole; what others brought is hashed once in each process."""
        name, num_bytes, sha256 = file
        path = self._path(file)
        if not self.cache.has(path, num_bytes):
            return False
        if sha256 and name not in here.sound:
            with contextlib.suppress(FileNotFoundError):
                if sha256_of(path) != sha256:
                    path.unlink(missing_ok=True)
                    return False
            here.sound.add(name)
        return True

    def _path(self, file: File) -> Path:
        return self.cache.path(self.corpus, file[0])

    def read_ahead(self, files: Iterable[File]) -> None:
        """Download files in the background, in this order, in place of what earlier calls still have to download.

        Until the next call the cache keeps them. Errors are left to `fetch`.

        Raises:
            UserError: the cache can't hold them together.
        """
        files, here = list(files), self._here
        window = {file: num_bytes for file, num_bytes, _ in files}
        self.check_room(window)
        with here.lock:
            here.window = window
            here.queue = deque(f for f in files if f[0] not in here.sound or not self.cache.has(self._path(f), f[1]))
            for _ in range(min(len(here.queue), self.num_threads - len(here.threads))):
                thread = threading.Thread(target=self._work, args=(here,), name="sslm-read-ahead", daemon=True)
                here.threads.add(thread)
                thread.start()

    def check_room(self, together: dict[str, int]) -> None:
        """Raise UserError if the cache may not hold these files, {file: bytes}, together."""
        limit, needed = self.cache.limit_bytes, sum(together.values())
        if limit is not None and needed > limit:
            raise UserError(
                f"--data.cache_gb {limit / 1e9:g}: is too small, {without_secrets(self.url)} needs {needed} bytes "
                f"here at once; give at least {-(-needed // 10**7) / 100:g}, or a smaller --data.block_shards"
            )

    def close(self) -> None:
        """End this process' threads and connections; a thread whose server stalls may end later.

        The next `fetch` begins new ones.
        """
        here = self._by_process.pop(os.getpid(), None)
        if here is not None:
            with here.lock:
                here.queue.clear()
                threads = list(here.threads)
            here.server.close()
            for thread in threads:
                thread.join(timeout=CLOSE_SECONDS)

    def _bring(self, here: "_Here", file: File, wait: bool) -> None:
        def keep() -> set[Path]:
            if here.server.is_closed or not (wait or file[0] in here.window):
                raise Stopped
            return {self.cache.path(self.corpus, name) for name in here.window}

        self.cache.bring(self._path(file), file[1], lambda stream: _download(here.server, file, stream), keep, wait)
        here.sound.add(file[0])

    def _work(self, here: "_Here") -> None:
        while True:
            with here.lock:
                if not here.queue:
                    here.threads.discard(threading.current_thread())
                    return
                file = here.queue.popleft()
            with contextlib.suppress(Exception):  # fetch will raise it
                if not self._is_here(here, file):
                    self._bring(here, file, wait=False)


class _Here:
    """One process' connections and threads."""

    def __init__(self, url: str) -> None:
        self.server = RemoteFolder(url)
        self.lock = threading.Lock()
        self.window: dict[str, int] = {}
        """{file: bytes} of the last read_ahead."""
        self.queue: deque[File] = deque()
        self.sound: set[str] = set()
        """Files of the cache that were verified by this process, or as they were brought."""
        self.threads: set[threading.Thread] = set()
