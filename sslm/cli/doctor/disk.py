"""The disks under the run folder and the cache: their room, their speed, and whether locks work there."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sslm.cli.doctor.finding import Finding, Level
from sslm.system.errors import one_line
from sslm.system.terminal import GIB, MIB, bytes_in_words

SAMPLE_BYTES, PAGE_BYTES = 8 * MIB, 4096
FULL, NARROW = GIB, 10 * GIB
"""Free bytes under which hardly any checkpoint fits; under which only those of small models do."""
SLOW_BYTES_PER_SECOND, SLOW_SYNC_SECONDS = 20 * MIB, 0.2
"""Under this speed a checkpoint of a gigabyte takes a minute; beyond this time each line of metrics.jsonl is felt."""


class Speed(NamedTuple):
    """What a disk did with a file of a few megabytes."""

    write: float
    """Bytes per second, until they were on the disk."""
    read: float
    """Bytes per second, if the system gave up what it had in memory."""
    sync_seconds: float
    """How long a further page took until it was on the disk."""


def look(folder: Path, name: str, flag: str) -> Iterator[Finding]:
    """Yield what there is to know of the disk under a folder, which needs not exist.

    Args:
        name: what it is called in the findings.
        flag: what names another folder.
    """
    there = nearest(folder)
    title = f"{name}'s disk"
    yield room(there, title, flag)
    try:
        yield speed_in_words(measured(there), there, title, flag)
        yield lock(there, f"{title}, locks", flag)
    except OSError as error:
        what = f"{there}: can't be written or locked ({error.strerror or one_line(error)})"
        yield Finding(f"{title}, files", what, "bad", "nothing can be kept there", f"give another {flag}")


def nearest(folder: Path) -> Path:
    """Find the folder, or the nearest one around it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def room(there: Path, title: str, flag: str) -> Finding:
    """Tell how much is free, and how many files may be added."""
    usage, system = shutil.disk_usage(there), os.statvfs(there)
    found = f"{there}: {bytes_in_words(usage.free)} of {bytes_in_words(usage.total)} are free"
    more = f"free some room, or give another {flag}"
    if system.f_files and not system.f_favail:
        return Finding(title, f"{found}, but no further file can be made", "bad", "nothing can be kept there", more)
    if usage.free < NARROW:
        level: Level = "bad" if usage.free < FULL else "note"
        return Finding(title, found, level, "checkpoints (sslm plan tells their size)", more)
    return Finding(title, found)


def measured(there: Path) -> Speed:
    """Write, sync and read a file without a name: nothing stays, however this process ends.

    Raises:
        OSError: it can't be written, or what is read is not what was written.
    """
    sample = os.urandom(SAMPLE_BYTES)
    with tempfile.TemporaryFile(dir=there, buffering=0) as file:
        start = time.perf_counter()
        file.write(sample)
        os.fsync(file.fileno())
        written = time.perf_counter()
        file.write(sample[:PAGE_BYTES])
        os.fsync(file.fileno())
        synced = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        again = time.perf_counter()
        if file.read(SAMPLE_BYTES) != sample:
            raise OSError("what is read is not what was written")
        read = time.perf_counter() - again
    return Speed(SAMPLE_BYTES / (written - start), SAMPLE_BYTES / read, synced - written)


def speed_in_words(speed: Speed, there: Path, title: str, flag: str) -> Finding:
    told = (
        f"writes {bytes_in_words(speed.write)}/s, reads {bytes_in_words(speed.read)}/s, a page is on it after "
        f"{speed.sync_seconds * 1000:.1f} ms"
    )
    if speed.write < SLOW_BYTES_PER_SECOND or speed.sync_seconds > SLOW_SYNC_SECONDS:
        hurts = "checkpoints take long, and training waits if the next is due"
        return Finding(
            f"{title}, speed", told, "note", hurts, f"give another {flag}, or a larger --checkpoint.every_steps"
        )
    return Finding(f"{title}, speed", told)


def lock(there: Path, title: str, flag: str) -> Finding:
    """Tell whether locks work, as that of a run folder must."""
    if locks(there):
        return Finding(title, "a lock keeps others out")
    hurts, more = "two runs could write into one folder", f"mount it with locks, or give another {flag}"
    return Finding(title, f"{there}: two processes may hold the same lock", "bad", hurts, more)


def locks(there: Path) -> bool:
    """Whether a lock that is held keeps others out.

    Raises:
        OSError: there are no locks.
    """
    handle, name = tempfile.mkstemp(dir=there, prefix=".sslm-doctor-")
    try:
        other = os.open(name, os.O_RDWR)
    finally:
        os.unlink(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    finally:
        os.close(handle)
        os.close(other)
