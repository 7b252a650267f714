"""Reading files of a server (S3, HTTP, whatever fsspec knows) with patience.

What may pass (a refused or cut connection, a 5xx, "slow down") is tried again, at random moments of ever longer intervals
(exponential backoff, full jitter), for `PATIENCE_SECONDS` without a byte; what won't (no such file or bucket, no
permission) is told at once. Files are read in ranges, so that what arrived before a cut is not asked for again; a
server that knows no ranges sends the whole file, which is held in memory then.

Tried with S3 and HTTP. Google Storage (gs://) and the Hugging Face hub (hf://) share the code and were not tried.
"""

import functools
import itertools
import logging
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from sslm.errors import UserError

PATIENCE_SECONDS = 180.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 10.0
WARN_SECONDS = 5.0
RANGE_BYTES = 16 << 20
STALLED_SECONDS = 60.0
"""A connection over which nothing comes for so long is dropped."""

PACKAGES = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub",
    "file": "", "memory": "",
}  # fmt: skip
"""Schemes, and the package fsspec needs for each."""

PASSING_4XX = {408, 425, 429}

_LOG = logging.getLogger(__name__)
_JITTER = random.SystemRandom()
"""Leaves Python's generator alone, and differs among forked processes."""


class Stopped(Exception):
    """The server was closed by another thread."""


class Server:
    """The files under one URL. For one process: threads may share it, a forked child makes its own.

    fsspec runs one thread of its own in a process, from the first file read over S3 or HTTP on.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._stop = threading.Event()
        self._making = threading.Lock()

    def chunks(self, file: str, num_bytes: int | None = None) -> Iterator[bytes]:
        """The first `num_bytes` of a file, or all; fewer where it is shorter.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: not permitted, or the server stayed away.
        """
        position = 0
        while num_bytes is None or position < num_bytes:
            end = position + RANGE_BYTES if num_bytes is None else min(position + RANGE_BYTES, num_bytes)
            data = self._range(file, position, end)
            if len(data) > end - position:  # the whole file: the server doesn't know ranges
                data = data[position:]
            yield data
            position += len(data)
            if position < end:
                return

    def _range(self, file: str, start: int, end: int) -> bytes:
        began, has_warned = time.monotonic(), False
        for attempt in itertools.count():
            if self.is_closed:
                raise Stopped
            try:
                filesystem, root = self._filesystem
                data: bytes = filesystem.cat_file(f"{root}/{file}", start=start, end=end)
                return data
            except Exception as error:
                if self.is_closed:  # and the connections with it
                    raise Stopped from None
                if _status(error) == 416:  # the file ends before
                    return b""
                self._raise_if_hopeless(file, error)
                wait = _JITTER.uniform(0, min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS))
                tried = time.monotonic() - began
                if tried + wait > PATIENCE_SECONDS:
                    raise UserError(f"{shown(self.url)}/{file}: could not be read for {tried:.0f} seconds ({_said(error)}); "
                                    f"run the same command again once the server answers") from None  # fmt: skip
                if tried > WARN_SECONDS and not has_warned:
                    has_warned = True
                    left = PATIENCE_SECONDS - tried
                    _LOG.warning("%s/%s: %s; trying for %.0f seconds more", shown(self.url), file, _said(error), left)
            self._stop.wait(wait)
        raise AssertionError

    def _raise_if_hopeless(self, file: str, error: Exception) -> None:
        """Raise what trying again won't mend; what clients raise beside that is taken to be about the network."""
        if isinstance(error, (FileNotFoundError, UserError)):
            raise error
        where, kind, status = f"{shown(self.url)}/{file}", type(error).__name__, _status(error) or 0
        is_refused = 400 <= status < 500 and status not in PASSING_4XX and not isinstance(error, TimeoutError)
        if isinstance(error, PermissionError) or is_refused or "Credential" in kind:
            raise UserError(
                f"{where}: refused ({_said(error)}); check the address and {_credentials(self.url)}"
            ) from None
        if "certificate" in f"{kind} {error}".lower():
            raise UserError(f"{where}: the server's certificate is not trusted ({_said(error)})") from None
        if isinstance(error, ValueError) or "Validation" in kind:
            raise UserError(f"{where}: not a proper address ({_said(error)})") from None
        if type(error).__module__ == "builtins" and not isinstance(error, (OSError, EOFError)):
            raise error

    @property
    def _filesystem(self) -> tuple[Any, str]:
        with self._making:
            return self._made_filesystem

    @functools.cached_property
    def _made_filesystem(self) -> tuple[Any, str]:
        import fsspec

        scheme = self.url.partition("://")[0]
        if scheme not in PACKAGES:
            raise UserError(
                f"{shown(self.url)}: can't read {scheme}://; choose from {', '.join(f'{s}://' for s in PACKAGES)}"
            )
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **_options(scheme))
        except ImportError as error:
            raise UserError(f"{shown(self.url)}: {PACKAGES[scheme]} is needed to read {scheme}:// ({_said(error)}): "
                            f"pip install {PACKAGES[scheme]}") from None  # fmt: skip
        if scheme == "s3":
            filesystem.retries = 1  # botocore's and ours are enough
        return filesystem, root.rstrip("/")

    @property
    def is_closed(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        """Interrupt whoever waits to try again, and drop the connections; they close as the file system is collected."""
        self._stop.set()
        self.__dict__.pop("_made_filesystem", None)


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        return {"config_kwargs": {"retries": {"max_attempts": 10, "mode": "standard"}}}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_SECONDS / 2, sock_read=STALLED_SECONDS)
        headers = {"Accept-Encoding": "identity"}  # checksums are of the file, and ranges too
        return {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
    return {}


def _status(error: BaseException) -> int | None:
    """The HTTP status a server answered with, by any client's spelling."""
    response: Any = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # botocore, or s3fs on top of it
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        status = getattr(response, "status_code", None)
    else:  # aiohttp, gcsfs
        status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return int(status) if str(status).isdigit() else None


def _said(error: BaseException) -> str:
    said = shown(" ".join(str(error).split()))[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _credentials(url: str) -> str:
    if url.startswith("s3:"):
        return "the AWS_… variables in the environment (FSSPEC_S3_ANON=true for a public bucket)"
    return "your permissions there"


def shown(url: str) -> str:
    """Without a password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", url)
