"""Files that outlive a crash: written whole or not at all, and on the disk when it matters."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from sslm.system.errors import UserError, short


def is_plain_name(name: object) -> bool:
    """Whether a name from outside is a plain file name."""
    return isinstance(name, str) and re.fullmatch(r"[\w+=@-][\w.+=@ -]{0,62}", name) is not None


def is_plain_path(name: object) -> bool:
    """Whether a name from outside is a plain relative path, whose file lies in the folder that it is joined to.

    >>> [is_plain_path(name) for name in ("a.bin", "model/config.json", "../a", "/a", "a//b", ".a", "")]
    [True, True, False, False, False, False, False]
    """
    parts = name.split("/") if isinstance(name, str) else []
    return 0 < len(parts) <= 8 and all(map(is_plain_name, parts))


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_size(value: object) -> bool:
    """Whether a value from outside may be a number of bytes, tokens or documents: from 0 to a quadrillion."""
    return type(value) is int and 0 <= value < 1 << 50


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(file: Path, sha256: str) -> bool:
    """Whether a file is there and has this checksum."""
    return file.is_file() and sha256_of(file) == sha256


def fsync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(file: Path, text: str) -> None:
    """Replace a file's contents: readers see the old or the new, never a part."""
    part = file.with_name(f".{file.name}.{uuid4().hex}.tmp")  # each container's process has the number 1
    try:
        part.write_text(text, encoding="utf-8")
        fsync(part)
        os.replace(part, file)
    except BaseException:  # a full disk, a folder in the way: leave no part behind
        part.unlink(missing_ok=True)
        raise


def json_lines(file: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line, none if it is missing; `tell` hears of a torn last line, which is dropped.

    Raises:
        UserError: another line is damaged.
    """
    *lines, last = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    if last:
        tell(f"{file}: its last line is torn, as a kill or a full disk leaves it, and is left out")
    found = []
    for number, line in enumerate(lines, start=1):
        with suppress(ValueError, RecursionError):
            if isinstance(entry := json.loads(line), dict):
                found.append(entry)
                continue
        raise UserError(f"{file}: line {number} is damaged ({short(line.decode(errors='replace'))}); remove this line")
    return found


def append_json_lines(file: Path, entries: Iterable[dict[str, Any]], ascii_only: bool = True) -> None:
    """Append lines, on the disk when this returns, in place of a last line that was torn.

    Args:
        ascii_only: whether to escape other characters, or to write them in UTF-8, for people to read.
    """
    content = file.read_bytes() if file.is_file() else b""
    whole = content.rfind(b"\n") + 1
    with open(file, "r+b" if file.is_file() else "wb") as stream:
        stream.truncate(whole)
        stream.seek(whole)
        stream.writelines(json.dumps(entry, ensure_ascii=ascii_only).encode() + b"\n" for entry in entries)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def one_maker(out: Path) -> Iterator[None]:
    """Wait for whoever is making `out`, on this machine; the lock dies with its holder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):  # FileLock would try for ever in a folder that takes no files
        pass
    lock = out.parent / f".{out.name}.lock"
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # a waiter notices that the file it locked is gone, and tries again


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: yields where to make it. Its maker holds `one_maker`."""
    part = out.parent / f".{out.name}.tmp"
    shutil.rmtree(part, ignore_errors=True)  # what a killed maker left
    part.mkdir()
    try:
        yield part
        fsync(part)
        os.rename(part, out)
        fsync(out.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
