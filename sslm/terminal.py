"""What goes to the screen: lines that say one thing, and progress where somebody is watching.

Where stdout is not a terminal (a batch job's log) there is no bar; a plain line comes now and then instead.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_PLAIN_LINES = 10.0


def say(text: str = "") -> None:
    """Print a line at once, above a progress bar if one is showing."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def is_watched() -> bool:
    return sys.stdout.isatty()


def count(number: float) -> str:
    """A number as people read it: 950, 12.3k, 4.6M, 1.2B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 07m, 3d 04h."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


class Report(Protocol):
    """Told of progress while a corpus is prepared: totals so far, and the share of the input read, if known."""

    def __call__(self, documents: int, tokens: int, share: float | None = None) -> None: ...


@contextmanager
def preparation_progress(what: str) -> Iterator[Report]:
    """A bar (or plain lines) with documents/s and tokens/s."""
    start = last_line = time.monotonic()

    def rates(documents: int, tokens: int) -> str:
        seconds = max(time.monotonic() - start, 1e-3)
        return (f"{count(documents)} documents ({count(documents / seconds)}/s), "
                f"{count(tokens)} tokens ({count(tokens / seconds)}/s)")  # fmt: skip

    if not is_watched():

        def plain(documents: int, tokens: int, share: float | None = None) -> None:
            nonlocal last_line
            if time.monotonic() - last_line > SECONDS_BETWEEN_PLAIN_LINES:
                last_line = time.monotonic()
                done = "" if share is None else f" {share:.0%}"
                say(f"{what}{done}: {rates(documents, tokens)}")

        yield plain
        return

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rates]}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(what, total=None, rates="")

        def show(documents: int, tokens: int, share: float | None = None) -> None:
            if share is not None:
                bar.update(task, total=1.0, completed=share)
            bar.update(task, rates=rates(documents, tokens))

        yield show


_the_console: Console | None = None


def console() -> Console:
    """One console, so that lines and bars know of each other; made anew when stdout was replaced (tests)."""
    global _the_console
    if _the_console is None or _the_console.file is not sys.stdout:
        _the_console = Console(file=sys.stdout)
    return _the_console
