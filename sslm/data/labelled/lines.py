"""Lines of a file of text, compressed or not, decoded by the one rule of utf8."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslm.data.corpus.files import COMPRESSIONS
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError, one_line


def open_bytes(file: Path) -> Any:
    """Open a file's bytes, decompressed."""
    import pyarrow  # heavy, and a corpus that is prepared needs none of it

    return pyarrow.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix.lower()))


def lines_of(file: Path) -> Iterator[str]:
    r"""Read a file's lines with their ends: \n alone divides them, as other marks may stand in a text.

    Raises:
        UserError: it is no text, or damaged.
    """
    utf8 = Utf8(str(file))
    rest = ""
    try:
        with open_bytes(file) as stream:
            for text in utf8.chunks(stream):
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    yield f"{line}\n"
    except (OSError, EOFError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{file}: can't be read, the file may be damaged ({one_line(error, None)})") from None
    if rest:
        yield rest
    utf8.check()
