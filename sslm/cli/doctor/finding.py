"""What a check of `sslm doctor` found."""

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, cast

from sslm.system.errors import one_line

Answer = TypeVar("Answer")
Level = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    level: Level = "good"
    """bad: it would hurt a run; note: it may surprise; good: neither."""
    hurts: str = ""
    """What would suffer; '' if nothing."""
    to_type: str = ""
    """What to type or do about it."""


class Check(NamedTuple):
    """A look at one side of the machine."""

    name: str
    look: Callable[[], Iterable[Finding]]
    seconds: float
    """How long it may take."""
    if_late: Level = "bad"
    """Level of no answer within that time."""


def findings_of(check: Check) -> list[Finding]:
    """Run a check for no longer than it may take; an error, or no answer, is a finding, too."""
    try:
        return answer_of(lambda: list(check.look()), check.name, check.seconds)
    except NoAnswer as late:
        return [Finding(check.name, str(late), check.if_late, "whatever uses it may hang as well")]
    except Exception as error:
        why = f"could not be checked: {type(error).__name__}: {one_line(error)}"
        return [Finding(check.name, why, "note", "nobody knows whether this is as it should be")]


class NoAnswer(Exception):
    """Some work has not ended in time."""


def answer_of(work: Callable[[], Answer], name: str, seconds: float) -> Answer:
    """Do some work in a thread, for no longer than it may take; return what it returns, and raise what it raises.

    Raises:
        NoAnswer: it has not ended in time; it is left alone.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise NoAnswer(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(Answer, answer)
