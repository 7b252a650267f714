"""What goes to the screen: lines that say one thing, and progress where somebody is watching.

Where stdout is not a terminal (a batch job's log) there is no bar; a plain line comes now and then instead.
"""

import functools
import logging
import os
import re
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.util import find_spec
from typing import Protocol

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.table import Table

from sslm.system.errors import printable, without_secrets

SECONDS_BETWEEN_PLAIN_LINES = 10.0
MARK_WIDTH = 12
NO_BREAK = "\u00a0"
"""Keeps two words on one line; a plain space once it is printed."""
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_muted = False


def mute() -> None:
    """From now on this process says nothing: of many ranks one speaks."""
    global _muted
    _muted = True


def say(text: str = "", to_copy: bool = False) -> None:
    """Print a line at once, above a progress bar if one is showing; a terminal gets it broken between words.

    What would steer a terminal is escaped: names of files, labels and samples are anybody's.

    Args:
        to_copy: whether there is a command or a path in it, which is left as it is.
    """
    if not _muted:
        text = "\n".join(
            NO_BREAK.join(map(printable, line.split(NO_BREAK))) for line in without_secrets(text).split("\n")
        )
        text = text if to_copy or not is_watched() else "\n".join(map(_broken, text.split("\n")))
        console().print(text.replace(NO_BREAK, " "), markup=False, highlight=False, soft_wrap=True)


def _broken(line: str) -> str:
    """Break a line that is wider than the terminal; what doesn't fit is indented, and no word is cut."""
    indent = line[: len(line) - len(line.lstrip())] + "  "
    width = console().width
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def warn(text: str) -> None:
    """Print a sentence to stderr, beside what goes to stdout."""
    if not _muted:
        print(f"Warning: {printable(without_secrets(text))}", file=sys.stderr, flush=True)


def is_watched() -> bool:
    return console().file.isatty() and not console().is_dumb_terminal and not _muted


def keep_libraries_quiet(accelerator: str = "auto") -> None:
    """Libraries' chatter off; their warnings stay, but for those about choices that are made on purpose here.

    Args:
        accelerator: cpu, gpu, or auto for a GPU if there is one. DeepSpeed is told before it is imported, which
            accelerate does if it is installed: else it guesses, and says so.
    """
    if find_spec("deepspeed") and "DS_ACCELERATOR" not in os.environ:
        os.environ["DS_ACCELERATOR"] = "cuda" if _takes_gpu(accelerator) else "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
    for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao if it is there
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it tells of each try
    for message in (
        ".*does not have many workers.*",
        ".*`srun` command is available on your system but is not used.*",
        ".*It is recommended to use .*sync_dist=True.*",  # what is logged has been summed over ranks
        ".*smaller than the logging interval.*",
        ".*`broadcast_buffers` is deprecated.*",  # its successor is missing in torch 2.11
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own
        ".*barrier\\(\\): using the device under current context.*",  # DeepSpeed's, of a process that is alone
        # an LSTM's weights are where optimizers and sharding have them; for cuDNN they are put together at each call
        ".*RNN module weights are not part of single contiguous chunk of memory.*",
    ):
        warnings.filterwarnings("ignore", message)


def _takes_gpu(accelerator: str) -> bool:
    if accelerator != "auto":
        return accelerator == "gpu"
    import torch  # heavy; whoever keeps libraries quiet is about to use it

    return torch.cuda.is_available()


def count(number: float) -> str:
    """A number as people read it: 950, 12.3k, 4.6M, 1.2B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def plural(number: int, noun: str, exact: bool = False) -> str:
    """Write a number of things, whole or as `count` does.

    >>> plural(1, "file"), plural(1200, "file"), plural(1200, "process", exact=True), plural(0, "entry")
    ('1 file', '1.2k files', '1,200 processes', '0 entries')
    """
    many = re.sub("(?<=[^aeiou])y$", "ie", noun) + ("es" if noun.endswith("s") else "s")
    return f"{f'{number:,}' if exact else count(number)} {noun if number == 1 else many}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 07m, 3d 04h."""
    whole = int(max(seconds, 0))
    for size, unit, part_size, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part_size:02d}{part}"
    return f"{whole}s"


class Progress:
    """A bar if somebody watches, else a plain line now and then. Any thread may report."""

    def __init__(self) -> None:
        self.started = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if is_watched():
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            self._bar = rich.progress.Progress(*columns, console=console(), transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()

    def show(self, text: str, share: float | None = None) -> None:
        """Show a line, and the share of the work that is done if anybody knows."""
        if self._bar is not None:
            self._bar.update(self._task, description=text, total=None if share is None else 1.0, completed=share or 0.0)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            say(text)

    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-3)

    def time_left(self, share: float) -> str:
        """Say how long the rest takes at the pace so far."""
        return f"{duration(self.seconds() * (1 - share) / share)} left" if share > 0 else ""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Report(Protocol):
    """Takes what this process has prepared so far, and the share of the input that is read, if known."""

    def __call__(self, documents: int, tokens: int, share: float | None = None) -> None: ...


Reporting = Callable[[], AbstractContextManager[Report]]
"""Begins to show progress."""


@contextmanager
def no_progress() -> Iterator[Report]:
    """Show nothing while a corpus is prepared."""
    yield lambda documents, tokens, share=None: None


@contextmanager
def preparation_progress(what: str) -> Iterator[Report]:
    """Show documents/s and tokens/s while a corpus is prepared."""
    with closing(Progress()) as bar:

        def show(documents: int, tokens: int, share: float | None = None) -> None:
            done, seconds = "" if share is None else f" {share:.0%}", bar.seconds()
            read = f"{plural(documents, 'document')} ({count(documents / seconds)}/s)"
            bar.show(f"{what}{done}: {read}, {plural(tokens, 'token')} ({count(tokens / seconds)}/s)", share)

        yield show


@contextmanager
def transfer_progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show bytes while they come or go; any thread may tell of more of them."""
    done, lock = 0, threading.Lock()
    with closing(Progress()) as bar:

        def add(num_bytes: int) -> None:
            nonlocal done
            with lock:
                done += num_bytes
                share = min(done / max(total_bytes, 1), 1.0)
                amount = f"{bytes_in_words(done)} of {bytes_in_words(total_bytes)}"
                bar.show(f"{what}: {amount}, {bar.time_left(share)}", share)

        yield add


class TrainingProgress(Progress):
    """Step, loss and speed of a run."""

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps

    def step(self, step: int, loss: float, tokens_per_second: float, mfu: float | None, done: float) -> None:
        """Show a step, and how long the rest takes; `done` is the share of this command's tokens, as steps may grow."""
        used = f"  MFU {mfu:.0%}" if mfu else ""
        speed = f"{count(tokens_per_second)} tokens/s{used}"
        text = f"step {step:>6}/{self.total_steps}  loss {loss:.4f}  {speed}  {self.time_left(done)}"
        self.show(text, step / self.total_steps)


@functools.cache
def console() -> Console:
    """Return the one console, so that lines and bars know of each other; it writes to whatever stdout is by then."""
    return Console()


def print_table(
    titles: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[int], wide: Sequence[int]
) -> None:
    """Print a table: rich if somebody watches, else columns that line up.

    Args:
        right: columns that are flush right.
        wide: columns that may take several lines if the terminal is narrow.
    """
    cells = [[printable(cell) for cell in row] for row in cells]
    if is_watched():
        table = Table(box=None, pad_edge=False)
        for column, title in enumerate(titles):
            table.add_column(title, header_style="dim", overflow="fold")
            table.columns[-1].justify = "right" if column in right else "left"
            table.columns[-1].no_wrap = column not in wide
            table.columns[-1].min_width = MARK_WIDTH if column in wide else None
        for row in cells:
            table.add_row(*map(escape, row))
        console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    flush = [str.rjust if column in right else str.ljust for column in range(len(titles))]
    for row in (titles, *cells):
        say("  ".join(pad(cell, width) for pad, cell, width in zip(flush, row, widths, strict=True)).rstrip())


def bytes_in_words(num_bytes: float) -> str:
    """Write a number of bytes as people read it.

    >>> bytes_in_words(3 << 29), bytes_in_words(9 << 20), bytes_in_words(950)
    ('1.5 GiB', '9 MiB', '950 B')
    """
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:,.1f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:,.0f} MiB"
    return f"{num_bytes / KIB:,.0f} KiB" if num_bytes >= KIB else f"{num_bytes:.0f} B"
