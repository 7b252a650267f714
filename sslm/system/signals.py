"""Signals that ask a process to stop; it then ends with exit code 75.

Until training begins there is nothing to save; later all is saved first (training/callbacks/preemption.py).
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SIGHUP comes when a terminal or an ssh connection closes."""

AGAIN_SECONDS = 0.05
"""A signal that comes where an exception would be lost is sent again so much later."""

Handler = Callable[[int, FrameType | None], Any]
Handlers = dict[signal.Signals, Any]


class Verb(Protocol):
    def __call__(self, arguments: list[str] | None = None) -> int: ...


class Stopped(BaseException):
    """A signal came while there was nothing to save; its text is the signal's name."""


def stops_on_signals(verb: Verb) -> Verb:
    """Wrap a verb's `main` so that a signal raises `Stopped` in it.

    Not amid an import: code that runs there may swallow an exception, or, if it is C++, abort the process. Python
    itself swallows what is raised in finalizers and callbacks of weak references: then the signal is sent again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if imports(frame):
            send_again(number)
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one is for the impatient
        raise Stopped(signal.Signals(number).name)

    @functools.wraps(verb)
    def wrapped(arguments: list[str] | None = None) -> int:
        before, hook = take_signals(stop), sys.unraisablehook

        def swallowed(what: Any) -> None:
            if isinstance(what.exc_value, Stopped):
                signal.signal(signal.SIGINT, stop)
                send_again(signal.Signals[str(what.exc_value)])
            else:
                hook(what)

        sys.unraisablehook = swallowed
        try:
            return verb(arguments)
        finally:
            sys.unraisablehook = hook
            give_back(before)

    return wrapped


def send_again(number: int) -> None:
    """Send this process a signal, a moment from now."""
    again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def imports(frame: FrameType | None) -> bool:
    """Whether an import is under way in this frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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
