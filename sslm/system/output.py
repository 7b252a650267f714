"""Standard output and standard error as a command needs them: whatever becomes of them, it goes on with its work.

A pipe's reader may leave (`| head`), a terminal be closed, the disk of a log be full; a stream may be closed from the
beginning (`>&-`), or take no Chinese. What can't be written is dropped; every other file still raises its errors.
"""

import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, TextIO

from sslm.system.errors import printable, without_secrets
from sslm.system.paths import as_typed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNENCODABLE = {"stdout": "replace", "stderr": "backslashreplace"}
"""Stream -> what Python does with characters that its encoding lacks. In a table, each stays one character wide."""


PAUSE_SECONDS = 30.0
"""Well below --watchdog_seconds, which would end a run that a reader holds up."""


def protect_output() -> None:
    """Let writing to stdout and stderr never fail in this process, except where somebody else has replaced them."""
    _fill_closed_descriptors()
    for descriptor, name in enumerate(UNENCODABLE, start=1):
        stream = getattr(sys, name)
        if stream is None:  # its descriptor was closed when Python began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _protected(stream, descriptor, UNENCODABLE[name]))


def print_error(sentence: str) -> None:
    """Print a sentence for the user to stderr, at once."""
    print(f"error: {printable(without_secrets(as_typed(sentence)))}", file=sys.stderr, flush=True)


def leave_paused_readers() -> None:
    """From now on wait for a reader that pauses (Ctrl-S, a pager) for `PAUSE_SECONDS`, then go on without it."""
    _Dropping.longest_pause = PAUSE_SECONDS


def has_reader() -> bool:
    """Whether somebody may still read stdout: of a pipe whose reader has left (`| head`) nobody does."""
    poll = select.poll()
    poll.register(1, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


class _Dropping(io.FileIO):
    """A file that drops what can't be written."""

    longest_pause: ClassVar[float | None] = None
    """Seconds to wait for a reader, or None to wait for ever."""
    is_paused = False

    def write(self, data: "ReadableBuffer", /) -> int:
        with suppress(OSError):
            part = memoryview(data)[: select.PIPE_BUF]  # so much a pipe that is ready takes at once
            if self._is_ready() and (written := super().write(part)):
                return written
        return memoryview(data).nbytes  # as if written; so too if a descriptor that doesn't block takes nothing now

    def _is_ready(self) -> bool:
        if self.longest_pause is not None:
            _, ready, _ = select.select([], [self], [], 0.0 if self.is_paused else self.longest_pause)
            self.is_paused = not ready
        return not self.is_paused


def _protected(stream: TextIO, descriptor: int, unencodable: str) -> TextIO:
    """Make a stream to the same place that drops what can't be written; a line goes out when it ends."""
    with suppress(OSError):
        stream.flush()
    file = io.BufferedWriter(_Dropping(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, encoding=stream.encoding, errors=unencodable, line_buffering=True)


def _fill_closed_descriptors() -> None:
    """Open /dev/null in the place of closed standard descriptors: the next file would get their numbers, and output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
