"""A folder of downloaded files, with a limit on its size, shared by all processes of a machine.

    cache/
      .lock                       held while room is made and while a file takes its name
      CORPUS/shards/FILE          whole and verified; its mtime says when it was last used
      CORPUS/shards/.FILE.lock    held, and removed, by the process that downloads FILE
      CORPUS/shards/.FILE.part    the download, of FILE's full length from the start, so that its room is taken

Locks are the kernel's and end with their process, even if it is killed; the next process that needs room or opens a
corpus removes what it left. Files used longest ago are removed first. A process that has mapped a removed file can
still read it, and its room is free only once it is unmapped: the limit holds for names in the folder.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

POLL_SECONDS = 0.02

Keep = Callable[[], Collection[Path]]
Fill = Callable[[IO[bytes]], None]
"""Writes a file's contents into a stream; called again after room was made on a full disk."""


@dataclass(frozen=True)
class Cache:
    """Files under a folder, with a limit on their size."""

    folder: Path
    limit_bytes: int | None
    """Largest size of all files together, or None for no limit."""

    def path(self, corpus: str, file: str) -> Path:
        return self.folder / corpus / "shards" / file

    def has(self, path: Path, num_bytes: int) -> bool:
        """Whether a file is there, whole, which counts as a use. It may be gone a moment later."""
        try:
            if path.stat().st_size != num_bytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def bring(self, path: Path, num_bytes: int, fill: Fill, keep: Keep, wait: bool) -> None:
        """Make sure that a file is in the cache: the first process fills it, the others wait and find it.

        Args:
            fill: writes `num_bytes` of contents; called by one process at a time.
            keep: lists files not to remove; called again while others' parts leave no room, and may raise to end the
                wait. They and this file have to fit into the limit.
            wait: whether to wait for another process that fills it, instead of returning without it.

        Raises:
            OSError: the disk is full, and no file is left to remove.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path, seconds=-1 if wait else 5 * POLL_SECONDS) as is_ours:
            if not is_ours or self.has(path, num_bytes):
                return
            path.unlink(missing_ok=True)  # there, but not whole
            part = _part(path)
            try:
                while not self._filled(part, num_bytes, fill, keep):
                    pass
                with self._lock():
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _filled(self, part: Path, num_bytes: int, fill: Fill, keep: Keep) -> bool:
        """Fill a part, or return False if the disk was full and there is more room now."""
        try:
            self._take_room(part, num_bytes, keep)
            with open(part, "r+b", buffering=0) as stream:
                fill(stream)
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            part.unlink(missing_ok=True)
            with self._lock():
                if self._evict(num_bytes, keep()) == 0:
                    raise OSError(error.errno, error.strerror, str(part)) from None
            return False
        return True

    def _take_room(self, part: Path, num_bytes: int, keep: Keep) -> None:
        """Create a part of its full length; while others' parts leave no room for it, wait for them."""
        while True:
            with self._lock():
                too_much = 0
                if self.limit_bytes is not None:
                    self._remove_leftovers("part")
                    too_much = sum(size for _, size, _ in self._files(parts=True)) + num_bytes - self.limit_bytes
                if too_much <= 0 or self._evict(too_much, keep()) >= too_much:
                    with open(part, "wb") as stream:
                        stream.truncate(num_bytes)
                    return
            time.sleep(POLL_SECONDS)

    def _evict(self, num_bytes: int, keep: Collection[Path]) -> int:
        """Remove files, those used longest ago first, until `num_bytes` are free; return how many became free."""
        removed = 0
        for _, size, path in sorted(self._files()):
            if removed >= num_bytes:
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                removed += size
        return removed

    def _files(self, parts: bool = False) -> Iterator[tuple[int, int, Path]]:
        """List (last use, bytes, path) of the whole files, and of parts if asked for."""
        for path in self.folder.glob("*/shards/*"):
            if not path.name.startswith(".") or (parts and path.suffix == ".part"):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    yield stat.st_mtime_ns, stat.st_size, path

    def remove_leftovers(self) -> None:
        """Remove what killed processes left."""
        with self._lock():
            self._remove_leftovers("lock")

    def _remove_leftovers(self, kind: str) -> None:
        for left in self.folder.glob(f"*/shards/.*.{kind}"):
            path = left.with_name(left.name[1:].removesuffix(f".{kind}"))
            with claimed(path, seconds=0) as is_ours:
                if is_ours:
                    _part(path).unlink(missing_ok=True)

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock", poll_interval=POLL_SECONDS / 4)


@contextlib.contextmanager
def claimed(path: Path, seconds: float) -> Iterator[bool]:
    """Hold a file's lock; yield False if it can't be had within some seconds (-1 waits as long as it takes)."""
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, poll_interval=POLL_SECONDS)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:  # still held: a process that waits for it sees that its file is gone, and makes another
        file.unlink(missing_ok=True)
        lock.release()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
