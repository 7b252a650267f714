"""Files to damage, and conditions to wait for."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def flip(file: Path, at: int | None = None) -> None:
    """Flip a bit of a byte, by default of the one in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    file.write_bytes(content)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.002)


def use_for_temporary_files(folder: Path) -> None:
    """In a forked process, whose parent has looked up TMPDIR already."""
    tempfile.tempdir = str(folder)
