"""Text on its way to stdout."""

import sys


class Shown:
    """Prints text at once; what could steer a terminal is not sent to one."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()

    def __call__(self, text: str) -> None:
        if self.is_terminal:
            text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        print(text, end="", flush=True)
