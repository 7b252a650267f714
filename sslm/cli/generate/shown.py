"""Text on its way to stdout."""

import sys

from sslm.system.exits import DONE
from sslm.system.output import has_reader


class Shown:
    """Prints text at once, but for what could steer a terminal; if nobody reads any longer, it is the end."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()

    def __call__(self, text: str) -> None:
        if self.is_terminal:
            text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        print(text, end="", flush=True)
        if not has_reader():
            raise SystemExit(DONE)
