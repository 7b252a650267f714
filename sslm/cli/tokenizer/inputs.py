"""What the verbs of `sslm tokenizer` read, and the folder that they make."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslm.data.corpus.documents import Source, open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.system.errors import UserError, short


def add_how(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how text is read, as `sslm prepare` has them."""
    field = "field that holds the text, in .jsonl, .parquet and datasets (default: %(default)s)"
    parser.add_argument("--text_field", default="text", help=field)
    separator = "regular expression between the documents of a .txt; default: a file is one document"
    parser.add_argument("--document_separator", help=separator)


def sources_of(paths: list[str], options: argparse.Namespace) -> list[Source]:
    """Open texts; nothing is hashed."""
    return [
        open_source(None if path == EMBEDDED else path, options.text_field, options.document_separator, lambda file: "")
        for path in paths
    ]


def count_of(flag: str, given: str | None, default: int) -> int:
    """Parse a number of characters."""
    if given is None:
        return default
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{flag} {short(given)}: expected a whole number of characters, such as {default}")
    return int(given)


@contextmanager
def folder_made(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` if all goes well, and is removed otherwise.

    Raises:
        UserError: `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: already exists; remove it, or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        part.chmod(0o755)
        yield part
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
