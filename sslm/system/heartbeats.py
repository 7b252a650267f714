"""Signs of life: what each rank has done so far, in memory and in a small file each, and which rank stopped first.

Ranks are compared by what they have done, never by their hosts' clocks: setting a clock or pausing the job is harmless.

    stacks/heartbeat-00003.json    what rank 3 has done, written anew now and then
    stacks/rank-00003.txt          after a stall: where each of its threads was
    stacks/stalled                 after a stall: the start of the run that it belongs to
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

WAITING = ("torch/distributed/", "torch/_ops.py", "torch/autograd/graph.py", "torch/cuda/")
"""Where the innermost Python frame is while a collective is waited for, in a backward pass and on a device too."""


@dataclass
class Heart:
    """What this process has done, in memory alone."""

    step: int = 0
    """The step that it takes, or loads the batch of. A run that rewinds takes one twice."""
    rounds: int = 0
    """Steps that this process has begun, this one included."""
    turns: int = 0
    """Beats in this one that all ranks have alike."""
    beats: int = 0
    """All beats."""
    what: str = "beginning"

    def begin(self, step: int, what: str) -> None:
        self.step, self.rounds, self.turns = step, self.rounds + 1, 0
        self.beat(what)

    def turn(self, what: str) -> None:
        self.turns += 1
        self.beat(what)

    def beat(self, what: str) -> None:
        self.beats, self.what = self.beats + 1, what


this_process = Heart()


def beat(what: str) -> None:
    """Tell the watchdog from any thread that this process makes progress: no rank is ended while one beats."""
    this_process.beat(what)  # never by a timer


@dataclass(frozen=True)
class Heartbeat:
    """What a rank writes of itself: who it is, its `Heart`, and where it is."""

    start: str
    """Names the start of the run: a rank of a former one may still be alive."""
    rank: int
    host: str
    pid: int
    step: int
    rounds: int
    turns: int
    beats: int
    what: str
    seconds: float
    """Since the last beat."""
    at: str
    """Where its main thread is."""
    waits: bool
    """Whether that is where one waits for others."""
    looks: int
    """How often this was written."""
    has_stacks: bool = False
    """Whether it has stalled, and written its stacks."""


def heartbeat_file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat-{rank:05d}.json"


def stacks_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"


def write(folder: Path, heartbeat: Heartbeat) -> None:
    """Replace a rank's file as a whole. It need not outlive a crash of the machine."""
    file = heartbeat_file(folder, heartbeat.rank)
    part = file.with_suffix(".tmp")
    part.write_text(json.dumps(asdict(heartbeat), indent=1) + "\n")
    os.replace(part, file)


def read(folder: Path, ranks: Iterable[int], start: str) -> dict[int, Heartbeat]:
    """The heartbeats there are, of this start of the run."""
    found = {}
    for rank in ranks:
        with suppress(OSError, ValueError, TypeError):
            heartbeat = Heartbeat(**json.loads(heartbeat_file(folder, rank).read_text()))
            if heartbeat.start == start:
                found[rank] = heartbeat
    return found


def place() -> tuple[str, bool]:
    """Where the main thread is (file:line, function), and whether that is where one waits for other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "", False
    file = frame.f_code.co_filename
    return f"{Path(file).name}:{frame.f_lineno}, {frame.f_code.co_name}", any(part in file for part in WAITING)


class Patience:
    """Decides when a wait for progress has lasted too long.

    Args:
        longest: most seconds that count between two looks; if more have passed, this process was paused.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.idle = 0.0
        """Seconds without progress."""
        self.looked_at: float | None = None
        self.beats = -1
        self.others: dict[int, int] | None = None
        """What they had done when half of the time was over."""

    def is_over(self, now: float, beats: int, limit: float, others: Callable[[], dict[int, int]]) -> bool:
        """Look at a time (of time.monotonic) and say whether nobody has made progress for `limit` seconds.

        Args:
            beats: what this process has done so far.
            others: reads the other ranks' beats; called from half of the limit on.
        """
        passed = min(now - self.looked_at, self.longest) if self.looked_at is not None else 0.0
        self.idle = self.idle + passed if beats == self.beats else 0.0
        self.looked_at, self.beats = now, beats
        if self.idle < limit / 2:
            self.others = None
        elif self.others is None:
            self.others = others()
        elif self.idle >= limit:
            before, self.others = self.others, others()
            if self.others == before:
                return True
            self.idle = limit / 2  # they go on, and this one waits for them
        return False


def silent(before: dict[int, Heartbeat], after: dict[int, Heartbeat]) -> set[int]:
    """Ranks whose process is paused or gone: they have neither looked from `before` to `after`, nor written stacks."""
    alive = {rank for rank, now in after.items() if now.has_stacks or now.looks != before.get(rank, now).looks}
    return (after.keys() & before.keys()) - alive


def first_to_stop(heartbeats: dict[int, Heartbeat], silent: set[int]) -> list[Heartbeat]:
    """Heartbeats of whoever stopped first, by rank: paused or gone, else has done least, else waits for nobody."""

    def order(heartbeat: Heartbeat) -> tuple[bool, int, int, bool]:
        return (heartbeat.rank not in silent, heartbeat.rounds, heartbeat.turns, heartbeat.waits)

    first = min(map(order, heartbeats.values()), default=None)
    return [heartbeat for _, heartbeat in sorted(heartbeats.items()) if order(heartbeat) == first]


def stall_message(heartbeats: dict[int, Heartbeat], silent: set[int], world: int, seconds: float, folder: Path) -> str:
    """Say in one sentence who stalled, where, and what to do."""
    again, first = "run the same command again to resume", first_to_stop(heartbeats, silent)
    if not first:
        return f"no progress for {seconds:g} s, and no rank's heartbeat can be read in {folder}; {again}"
    suspect = first[0]
    names = ", ".join(str(heartbeat.rank) for heartbeat in first[:8]) + (", …" if len(first) > 8 else "")
    who = f"rank {suspect.rank} (process {suspect.pid} on {suspect.host}) stopped first"
    if len(first) > 1:
        who = f"{'all ranks' if len(first) == world else f'ranks {names}'} stopped together"
    doing = f"in step {suspect.step}, {suspect.what}"
    if suspect.rank in silent:
        doing = f"last seen {doing}: the process itself is paused, has ended, or runs code that blocks all its threads"
    else:
        doing += f" (at {suspect.at})"
    stacks = sum(heartbeat.has_stacks for heartbeat in heartbeats.values())
    missing = f"; {world - len(heartbeats)} of {world} ranks have no heartbeat there" if len(heartbeats) < world else ""
    return (
        f"no progress for {seconds:g} s: {who}, {doing}; the stacks of {stacks} of {world} ranks are in {folder}"
        f"{missing}; {again}, with a larger --watchdog_seconds if it was only slow"
    )
