"""What a check of `sslm doctor` found."""

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sslm.system.errors import one_line

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
    """Run a check in a thread, for no longer than it may take; an error, or no answer, is a finding, too."""
    answers: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(list(check.look()))
        except Exception as error:
            why = f"could not be checked: {type(error).__name__}: {one_line(error)}"
            answers.put([Finding(check.name, why, "note", "nobody knows whether this is as it should be")])

    threading.Thread(target=work, name=check.name, daemon=True).start()
    try:
        return answers.get(timeout=check.seconds)
    except queue.Empty:
        return [
            Finding(
                check.name, f"no answer within {check.seconds:g} s", check.if_late, "whatever uses it may hang as well"
            )
        ]
