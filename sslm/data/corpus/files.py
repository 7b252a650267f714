"""What a path, a folder or a pattern holds: one rule for files of text and of token ids.

In a folder and those below it, hidden files are left out, links are followed without going round in circles, and case
does not matter at a name's end. What is left out is counted, so that the user can be told.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sslm.system.errors import UserError, nearest
from sslm.system.terminal import plural

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Ending of a compressed file -> pyarrow's name of how it is compressed."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (".txt", *JSON_LINES, ".parquet")
METADATA = re.compile(
    r"(dataset|dataset_infos?|dataset_dict|state|index|cleaning|meta(data)?|\w*config|(special_)?token\w*)\.json"
)
"""Names of files that tell of the others in a folder."""
FORMATS_IN_WORDS = f"{', '.join(FORMATS)} (also with {' or '.join(COMPRESSIONS)})"


class Found(NamedTuple):
    """The files of text at a path."""

    files: list[Path]
    left_out: dict[str, int]
    """Why files were left out -> number of them."""

    def remark(self) -> str | None:
        """Tell what was left out, or None if nothing was."""
        parts = [f"{number} {why}" for why, number in sorted(self.left_out.items())]
        left_out = plural(sum(self.left_out.values()), "file")
        return f"{left_out} left out ({', '.join(parts)})" if parts else None


def format_of(file: Path) -> str:
    """Tell the format of a file by its name's end, in lower case, any compression's left out."""
    endings = [suffix.lower() for suffix in file.suffixes]
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    return endings[-1] if endings else ""


def is_text(file: Path) -> bool:
    """Whether a file's name, in a folder, is of a kind that is read as text."""
    return format_of(file) in FORMATS and not METADATA.fullmatch(file.name.lower())


def find_text(given: str) -> Found | None:
    """Find the files of text that a user's path, folder or pattern names; None if it can only be a dataset's name.

    Raises:
        UserError: there is nothing of that name, or no text.
    """
    path = Path(given)
    left_out: Counter[str] = Counter()
    if path.is_dir():
        there = sorted(walk(path, left_out))
        if not any(map(is_text, there)):
            raise UserError(f"{given}: no text in this folder; expected files ending in {FORMATS_IN_WORDS}")
    elif path.is_file():
        there = [path]
        if format_of(path) not in FORMATS:
            raise UserError(f"{given}: unknown kind of file; expected one ending in {FORMATS_IN_WORDS}")
    elif glob.has_magic(given):
        there = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not any(map(is_text, there)):
            raise UserError(f"{given}: no file matches this pattern; expected names ending in {FORMATS_IN_WORDS}")
    elif is_text(path) or path.suffix.lower() in COMPRESSIONS or given.startswith((".", "/")) or given.count("/") > 1:
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise UserError(f"{given}: there is no such file or folder{nearest(path.name, beside)}")
    else:
        return None
    files = there if path.is_file() else [file for file in there if is_text(file)]
    left_out["of another kind"] += len(there) - len(files)
    full = [file for file in files if file.stat().st_size]
    if not full:
        what = "the file is empty" if len(files) == 1 else f"all {len(files)} files are empty"
        raise UserError(f"{given}: {what}")
    left_out["empty"] += len(files) - len(full)
    return Found(full, dict(+left_out))


def walk(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """List the files of a folder, in order, then those of the folders in it; hidden ones are counted in `left_out`."""
    left_out = Counter() if left_out is None else left_out
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (Path(here, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in shown if path.is_file())


def _refuse(error: OSError) -> None:
    raise error
