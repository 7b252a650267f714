"""Files that outlive a crash: written whole or not at all, and on the disk when it matters."""

import hashlib
import os
from pathlib import Path


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(file: Path, text: str) -> None:
    """Replace a file's contents: readers see the old or the new, never a part."""
    part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        fsync(part)
        os.replace(part, file)
    except BaseException:  # a full disk, a folder in the way: leave no part behind
        part.unlink(missing_ok=True)
        raise
