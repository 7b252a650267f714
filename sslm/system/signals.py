"""Signals that ask a process to stop; it then ends with exit code 75.

Until training begins there is nothing to save; later all is saved first (training/callbacks/preemption.py).
"""

import functools
import signal
from types import FrameType
from typing import Protocol

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Verb(Protocol):
    def __call__(self, arguments: list[str] | None = None) -> int: ...


class Stopped(BaseException):
    """A signal came while there was nothing to save; its text is the signal's name."""


def stops_on_signals(verb: Verb) -> Verb:
    """Wrap a verb's `main` so that a signal raises `Stopped` in it."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one is for the impatient
        raise Stopped(signal.Signals(number).name)

    @functools.wraps(verb)
    def wrapped(arguments: list[str] | None = None) -> int:
        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            return verb(arguments)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return wrapped
