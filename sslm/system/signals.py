"""Signals that ask a process to stop; it then ends with exit code 75.

Until training begins there is nothing to save; later all is saved first (training/callbacks/preemption.py).
"""

import functools
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SIGHUP comes when a terminal or an ssh connection closes."""


Handler = Callable[[int, FrameType | None], Any]
Handlers = dict[signal.Signals, Any]


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
        before = take_signals(stop)
        try:
            return verb(arguments)
        finally:
            give_back(before)

    return wrapped


def take_signals(handler: Handler, numbers: Iterable[signal.Signals] = STOP_SIGNALS) -> Handlers:
    """Let `handler` take signals, but not SIGHUP if it is ignored (nohup), and none in a thread, which may not.

    Returns the handlers before, for `give_back`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in numbers}
    if before.get(signal.SIGHUP) is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handler)
    return before


def give_back(before: Handlers) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
