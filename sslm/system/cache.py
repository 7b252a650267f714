"""A folder of files brought from elsewhere, with a limit on its size, shared by all processes of a machine.

    cache/
      .lock                       held while room is made and while a file takes its name
      CORPUS/shards/FILE          whole and verified; its mtime says when it was last asked for
      CORPUS/shards/.FILE.lock    held by whoever brings FILE, removed by the holder
      CORPUS/shards/.FILE.part    what is there of it, of FILE's full length from the start, so that its room is taken

Locks are the kernel's and end with the process that holds them, also by `kill -9`; what such a process left is removed by
the next that needs room or opens a corpus. Files that were not asked for the longest go first. A file that goes while
somebody has it mapped stays readable for them, and its room is free only once they have let go: the limit holds for
names in the folder.
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
"""Writes a file's contents into a stream; may be called again, after room was made on a full disk."""


@dataclass(frozen=True)
class Cache:
    """Files under `folder`, of at most `limit_bytes` together (None: no limit)."""

    folder: Path
    limit_bytes: int | None

    def path(self, corpus: str, file: str) -> Path:
        return self.folder / corpus / "shards" / file

    def has(self, path: Path, num_bytes: int) -> bool:
        """Whether a file is here, whole; if so it counts as just used. It may be gone the moment after."""
        try:
            if path.stat().st_size != num_bytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def bring(self, path: Path, num_bytes: int, fill: Fill, keep: Keep, wait: bool) -> None:
        """See to it that a file is here: whoever comes first fills it, the others wait and find it.

        Args:
            path: where it shall be.
            num_bytes: its size; `fill` writes as many.
            fill: called without the file here, and by one process at a time.
            keep: gives files that must not make room for it; asked again while others' parts leave no room, and may
                raise to end the waiting. They and this one have to fit into the limit.
            wait: for another that is bringing it; else return without it.

        Raises:
            OSError: the disk is full, and nothing is left that could go.
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
        """Fill a part. False: the disk was full, and there is more room now."""
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
        """Create a part of its full length; where others' parts leave no room for it, wait for them."""
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
        """Remove the files used longest ago, of `num_bytes` together if there are so many; returns how many bytes went."""
        removed = 0
        for _, size, path in sorted(self._files()):
            if removed >= num_bytes:
                break
            if path not in keep:
                path.unlink(missing_ok=True)
                removed += size
        return removed

    def _files(self, parts: bool = False) -> Iterator[tuple[int, int, Path]]:
        """(last use, bytes, path) of the whole files, and of those on their way."""
        for path in self.folder.glob("*/shards/*"):
            is_hidden = path.name.startswith(".")
            if not is_hidden or (parts and path.suffix == ".part"):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    yield stat.st_mtime_ns, stat.st_size, path

    def remove_leftovers(self) -> None:
        """Remove what processes left that died while they brought a file."""
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
    """Hold the lock of one file. Yields False where another has it for so long (-1: wait as long as it takes)."""
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, poll_interval=POLL_SECONDS)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:  # while it is held: who waits for it sees that its file is gone, and makes another
        file.unlink(missing_ok=True)
        lock.release()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
