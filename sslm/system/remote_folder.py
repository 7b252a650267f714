"""Read and write files of a server (S3, HTTP, whatever fsspec knows), with retries.

Errors that may pass (a cut connection, a 5xx, "slow down") are retried with exponential backoff and full jitter for
`PATIENCE_SECONDS` without a byte; others (no such file, no permission) are raised at once. Files are read in ranges, so
that a retry asks only for the rest; a server without ranges sends the whole file, which is held in memory. Files are
written whole.

Tried with S3 and HTTP. Google Storage (gs://) and the Hugging Face hub (hf://) share the code and were not tried.
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from sslm.system.errors import UserError, sentence_of, without_secrets
from sslm.system.files import fsync, is_size

PATIENCE_SECONDS = 180.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 10.0
WARN_SECONDS = 5.0
RANGE_BYTES = 16 << 20
STALLED_SECONDS, PROGRESS_BYTES = 60.0, 1 << 16
"""A connection that sends fewer bytes than this in so many seconds, and not all that is asked for, is dropped."""
LISTING_SECONDS, MOST_LISTED = 60.0, 100_000
"""A listing that takes longer, or has more files, is given up: it is of checkpoints, of which there are few."""
SMALL_FILE_BYTES = 1 << 30
"""Longest file that is read whole without being announced by somebody."""
DOWNLOADS = 3
"""Number of whole downloads with a wrong checksum before a file counts as bad."""

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}
"""Scheme -> package that fsspec needs for it."""
SCHEMES = (*PACKAGES, "file", "memory")
EXTRAS = {"s3": "'sslm[s3]'", "gs": "'sslm[gs]'", "gcs": "'sslm[gs]'"}

PASSING_4XX = {408, 425, 429}

_LOG = logging.getLogger(__name__)
_JITTER = random.SystemRandom()
"""A generator that leaves Python's alone, and differs among forked processes."""

T = TypeVar("T")


class Stopped(Exception):
    """The server was closed by another thread."""


class RemoteFolder:
    """The files under a URL or a path. Threads may share it; a forked child makes its own.

    Its methods raise UserError without permission, or if the server stays away. fsspec runs a thread from the first
    file read over S3 or HTTP on.

    Args:
        patience_seconds: how long to retry, or None for `PATIENCE_SECONDS`.
    """

    def __init__(self, url: str, patience_seconds: float | None = None) -> None:
        self.url = (url if "://" in url else f"file://{Path(url).absolute()}").rstrip("/")
        self.patience_seconds = patience_seconds
        self.shown_url = without_secrets(self.url)
        self._stop = threading.Event()
        self._making = threading.Lock()

    def chunks(self, file: str, num_bytes: int = SMALL_FILE_BYTES) -> Iterator[bytes]:
        """Read a file's first `num_bytes`; fewer if it is shorter. No more than that is ever in memory.

        Raises:
            FileNotFoundError: there is no such file.
        """
        position = 0
        while position < num_bytes:
            end = min(position + RANGE_BYTES, num_bytes)
            data = self._range(file, position, end, num_bytes)
            yield data
            position += len(data)
            if position < end:
                return

    def download(
        self, file: str, num_bytes: int, sha256: str, stream: IO[bytes], came: Callable[[int], None] = lambda _: None
    ) -> str:
        """Write a file's bytes from the stream's beginning, and tell `came` how many as they come.

        Returns what was wrong in each of `DOWNLOADS` downloads, or an empty string.

        Raises:
            FileNotFoundError: there is no such file.
        """
        for _ in range(DOWNLOADS):
            stream.seek(0)
            found_bytes, digest = 0, hashlib.sha256()
            for chunk in self.chunks(file, num_bytes):
                found_bytes += len(chunk)
                digest.update(chunk)
                if found_bytes <= num_bytes:
                    stream.write(chunk)
                came(len(chunk))
            if found_bytes == num_bytes and (not sha256 or digest.hexdigest() == sha256):
                return ""
        other = "not the bytes its checksum is of"
        return other if found_bytes == num_bytes else f"{found_bytes} bytes, not {num_bytes}"

    def files(self, folder: str) -> dict[str, int]:
        """List the files under a folder, at any depth: name under the URL -> bytes; none if there is no such folder."""

        def listed(filesystem: Any, path: str) -> dict[str, int]:
            filesystem.invalidate_cache()  # an earlier listing may be outdated
            root = path.removesuffix(folder).lstrip("/")
            is_async = filesystem.async_impl
            there = _sync(filesystem.loop, _list, filesystem, path) if is_async else filesystem.find(path, detail=True)
            if len(there) > MOST_LISTED:
                raise UserError(
                    f"{self.shown_url}/{folder}: lists more than {MOST_LISTED:,} files; give another address"
                )
            sizes = ((name.lstrip("/").removeprefix(root), info.get("size")) for name, info in there.items())
            return {name: size for name, size in sizes if is_size(size)}

        try:
            return self._patiently(folder, "listed", listed)
        except FileNotFoundError:  # nor a bucket
            return {}

    def put(self, file: str, source: Path) -> None:
        """Upload a file whole, in place of what was there."""
        self._write_whole(file, lambda filesystem, path: filesystem.put_file(str(source), path))

    def write(self, file: str, data: bytes) -> None:
        self._write_whole(file, lambda filesystem, path: filesystem.pipe_file(path, data))

    def _write_whole(self, file: str, write: Callable[[Any, str], object]) -> None:
        """Replace a file at once: object stores do; on a file system it is written beside, and renamed."""

        def act(filesystem: Any, path: str) -> None:
            is_local = "file" in filesystem.protocol
            part = f"{path}.part" if is_local else path
            write(filesystem, part)
            if is_local:
                fsync(Path(part))
                os.replace(part, path)

        self._patiently(file, "written", act)

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(file, "removed", lambda filesystem, path: filesystem.rm_file(path))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(folder, "removed", lambda filesystem, path: filesystem.rm(path, recursive=True))

    def _range(self, file: str, start: int, end: int, num_bytes: int) -> bytes:
        """Read bytes start … end − 1, or up to byte `num_bytes` if the server doesn't know ranges."""

        def read(filesystem: Any, path: str) -> bytes:
            try:
                if (scheme := self.url.partition("://")[0]) in BODIES:
                    return bytes(_sync(filesystem.loop, _read, scheme, filesystem, path, start, end, num_bytes))
                return bytes(filesystem.cat_file(path, start=start, end=end))[: end - start]
            except Exception as error:
                if _status(error) == 416:  # the file ends before
                    return b""
                raise

        return self._patiently(file, "read", read)

    def _patiently(self, file: str, done: str, act: Callable[[Any, str], T]) -> T:
        """Call `act(file system, path)`, with retries while they may help; `done` is its participle, for messages."""
        patience = PATIENCE_SECONDS if self.patience_seconds is None else self.patience_seconds
        first_failure, has_warned = None, False
        for attempt in itertools.count():
            if self.is_closed:
                raise Stopped
            try:
                with self._making:
                    filesystem, root = self._filesystem
                return act(filesystem, f"{root}/{file}")
            except Exception as error:
                if self.is_closed:  # and the connections with it
                    raise Stopped from None
                self._raise_if_hopeless(file, error)
                now = time.monotonic()
                first_failure = first_failure or now
                wait = _JITTER.uniform(0, min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS))
                tried = now - first_failure
                where, said = f"{self.shown_url}/{file}", _said(error)
                if tried + wait > patience:
                    advice = "; run the same command again once the server answers" if done == "read" else ""
                    raise UserError(f"{where}: could not be {done} for {tried:.0f} seconds ({said}){advice}") from None
                if tried > WARN_SECONDS and not has_warned:
                    has_warned = True
                    _LOG.warning("%s: %s; trying for %.0f seconds more", where, said, patience - tried)
            self._stop.wait(wait)
        raise AssertionError

    def _raise_if_hopeless(self, file: str, error: Exception) -> None:
        """Raise an error that a retry won't mend; all others are taken for the network's."""
        if isinstance(error, (FileNotFoundError, UserError)):
            raise error
        where, kind, status, said = f"{self.shown_url}/{file}", type(error).__name__, _status(error) or 0, _said(error)
        is_refused = 400 <= status < 500 and status not in PASSING_4XX and not isinstance(error, TimeoutError)
        if isinstance(error, PermissionError) or is_refused or "Credential" in kind:
            permissions = "your permissions there"
            if self.url.startswith("s3:"):
                permissions = "the AWS_… variables in the environment (FSSPEC_S3_ANON=true for a public bucket)"
            raise UserError(f"{where}: refused ({said}); check the address and {permissions}") from None
        if "certificate" in f"{kind} {error}".lower():
            raise UserError(f"{where}: the server's certificate is not trusted ({said})") from None
        if self.url.startswith("file:") and sentence_of(error):  # a full disk, a file in the way
            raise error
        if isinstance(error, ValueError) or "Validation" in kind:
            raise UserError(f"{where}: not a proper address ({said})") from None
        if type(error).__module__ == "builtins" and not isinstance(error, (OSError, EOFError)):
            raise error

    @functools.cached_property
    def _filesystem(self) -> tuple[Any, str]:
        import fsspec  # heavy, and only URLs need it

        scheme = self.url.partition("://")[0]
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise UserError(f"{self.shown_url}: can't read {scheme}://; choose from {known}")
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **self._options(scheme))
        except ImportError as error:
            package = PACKAGES.get(scheme, "")
            why = f"{package} is needed for {scheme}:// ({_said(error)}): pip install {EXTRAS.get(scheme, package)}"
            raise UserError(f"{self.shown_url}: {why}") from None
        if scheme == "s3":
            filesystem.retries = 1  # botocore's and ours are enough
        return filesystem, root.rstrip("/")

    @property
    def is_closed(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        """Interrupt waiting threads, and drop the connections, which close as the file system is collected."""
        self._stop.set()
        self.__dict__.pop("_filesystem", None)

    def _options(self, scheme: str) -> dict[str, Any]:
        if scheme == "s3":
            retries = 10 if self.patience_seconds is None else 1
            return {"config_kwargs": {"retries": {"max_attempts": retries, "mode": "standard"}}}
        if scheme in ("http", "https"):
            import aiohttp  # optional

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_SECONDS / 2, sock_read=STALLED_SECONDS)
            headers = {"Accept-Encoding": "identity"}  # checksums and ranges are of the file, not of its compression
            kind = {"timeout": timeout, "headers": headers, "trust_env": True, "auto_decompress": False}
            return {"client_kwargs": kind}
        return {"auto_mkdir": True} if scheme == "file" else {}


class _Body(NamedTuple):
    """A body as it comes from a server."""

    is_whole: bool
    """Whether it is all of the file, and not the range that was asked for."""
    next_block: Callable[[], Awaitable[bytes]]
    """Returns what has come, or nothing at the end."""


@contextlib.asynccontextmanager
async def _http_body(filesystem: Any, url: str, start: int, end: int) -> AsyncIterator[_Body]:
    session, headers = await filesystem.set_session(), {"Range": f"bytes={start}-{end - 1}"}
    async with session.get(filesystem.encode_url(url), headers=headers) as response:
        filesystem._raise_not_found_for_status(response, url)
        yield _Body(response.status == 200, response.content.readany)
        response.close()  # whatever else it would send


@contextlib.asynccontextmanager
async def _s3_body(filesystem: Any, path: str, start: int, end: int) -> AsyncIterator[_Body]:
    bucket, key, _ = filesystem.split_path(path)
    response = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
    body, is_whole = response["Body"], "ContentRange" not in response
    try:
        yield _Body(is_whole, lambda: body.read(PROGRESS_BYTES))
    finally:
        body.close()


BODIES = {"http": _http_body, "https": _http_body, "s3": _s3_body}
"""Scheme -> how to get at a body before all of it is here: fsspec reads to its end, which may never come."""


async def _read(scheme: str, filesystem: Any, path: str, start: int, end: int, num_bytes: int) -> bytes:
    """Read a range, and no more, whatever a server sends."""
    read, marked, loop = bytearray(), 0, asyncio.get_running_loop()
    async with asyncio.timeout(STALLED_SECONDS) as limit, BODIES[scheme](filesystem, path, start, end) as body:
        first, most = (0, num_bytes) if body.is_whole else (start, end - start)
        while len(read) <= most and (block := await body.next_block()):  # an end that is met keeps the connection
            read += block
            if len(read) - marked >= PROGRESS_BYTES:
                marked = len(read)
                limit.reschedule(loop.time() + STALLED_SECONDS)
    return bytes(read[start - first : most])


async def _list(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """List what is under a path, unless it takes too long or has no end."""
    is_s3 = "s3" in filesystem.protocol
    async with asyncio.timeout(LISTING_SECONDS):
        there: dict[str, dict[str, Any]] = await filesystem._find(
            path, detail=True, **({"max_items": MOST_LISTED + 1} if is_s3 else {})
        )
    return there


def _sync(*arguments: Any) -> Any:
    from fsspec.asyn import sync  # heavy

    return sync(*arguments)


def _status(error: BaseException) -> int | None:
    """Find the HTTP status in any client's error."""
    response: Any = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # botocore, or s3fs on top of it
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        status = getattr(response, "status_code", None)
    else:  # aiohttp, gcsfs
        status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return int(status) if str(status).isdigit() else None


def _said(error: BaseException) -> str:
    said = without_secrets(" ".join(str(error).split()))[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
