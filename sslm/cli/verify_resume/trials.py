"""A run of train in processes of its own, interrupted at random steps and started again until it is done."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import NamedTuple

from sslm.runs.folder import RunFolder
from sslm.system.exits import DONE, STOPPED
from sslm.system.terminal import Progress, say

SECONDS_BETWEEN_LOOKS = 0.005
LAST_LINES = 12
LATEST = 0.8
"""Share of the run after which it is no longer to be interrupted: it would be over before the signal comes."""
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: STOPPED}
"""Exit code after a signal."""

Train = subprocess.Popen[bytes]
Tell = Callable[[str, int], None]
"""Told of a run's name and its step."""


class Interruption(NamedTuple):
    signal: Signals
    at: int
    """Step that must be reached."""
    later: float
    """Steps' time after that: in the midst of a step, of saving, of a validation."""


@dataclass
class Trial:
    """One run and how it went.

    Args:
        name: what it is called, in reports and as a file.
        folder: where its run folder and what it prints go.
        commands: flags of each start, in turn.
    """

    name: str
    folder: Path
    commands: Sequence[Sequence[str]]
    interruptions: list[str] = field(default_factory=list)
    """`SIGKILL at step 7`."""
    seconds: float = 0.0
    code: int | None = None
    """Its last exit code; None: it hung, or was not started."""
    failure: str = ""
    """What went wrong; empty: it is done."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / self.name)

    @property
    def step(self) -> int:
        """Of its last row."""
        rows = self.run.rows()
        return int(rows[-1]["step"]) if rows else 0

    @property
    def flags_stay(self) -> bool:
        return len(self.commands) == 1

    def last_lines(self) -> list[str]:
        """Of what its last start printed to stderr."""
        file = self.folder / f"{self.name}.err"
        return file.read_text(errors="replace").splitlines()[-LAST_LINES:] if file.is_file() else []

    def carry_out(
        self, steps: int, signals: Sequence[Signals], chance: random.Random, tell: Tell, patience: float
    ) -> None:
        """Start it, with an interruption for each signal, until it has ended by itself.

        Args:
            steps: the run's last.
            chance: says when.
            patience: seconds without a new row after which it has hung.
        """
        began = time.monotonic()
        try:
            for start, number in enumerate([*signals, None]):
                each = max((round(LATEST * steps) - self.step) // max(len(signals) - start, 1), 1)
                at, later = self.step + 1 + chance.randrange(each), 2 * chance.random()
                when = None if number is None else Interruption(number, at, later)
                if not self._start(self.commands[start % len(self.commands)], when, tell, patience):
                    break
        except subprocess.TimeoutExpired:
            self.failure = f"hung: nothing new for {patience:.0f} s after step {self.step}"
        self.seconds = time.monotonic() - began

    def _start(self, flags: Sequence[str], when: Interruption | None, tell: Tell, patience: float) -> bool:
        """Start it once; whether it is to be started again."""
        self.code = None
        with self._process(flags) as train:
            self._watch(train, when and when.at, tell, patience)
            if when is None or train.poll() is not None:
                self.code = train.wait()
                self.failure = "" if self.code == DONE else f"exit code {self.code} after step {self.step}"
                return False
            time.sleep(when.later * self._seconds_per_step())
            self.interruptions.append(f"{when.signal.name} at step {self.step}")
            say(f"{self.name}: {self.interruptions[-1]}")
            _send(train, when.signal)
            self.code = train.wait(patience)
        if self.code == DONE:
            self.interruptions[-1] += ", too late"
        if self.code not in (EXPECTED[when.signal], DONE):
            self.failure = f"exit code {self.code} after {self.interruptions[-1]}, expected {EXPECTED[when.signal]}"
        return self.code == EXPECTED[when.signal]

    def _watch(self, train: Train, at: int | None, tell: Tell, patience: float) -> None:
        """Until it has ended or reached a step.

        Raises:
            TimeoutExpired: it has hung.
        """
        seen, since = -1, time.monotonic()
        while train.poll() is None and (at is None or seen < at):
            if (step := self.step) != seen:
                seen, since = step, time.monotonic()
                tell(self.name, step)
            if time.monotonic() - since > patience:
                raise subprocess.TimeoutExpired(self.name, patience)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _seconds_per_step(self) -> float:
        rows = [row for row in self.run.rows() if row.get("tokens_per_second")]
        return (
            statistics.median(row["tokens"] / row["step"] / row["tokens_per_second"] for row in rows) if rows else 0.0
        )

    @contextmanager
    def _process(self, flags: Sequence[str]) -> Iterator[Train]:
        """`python -m sslm.train` in a process group of its own, of which nothing is left afterwards."""
        command = [sys.executable, "-m", "sslm.train", *flags, "--run_dir", str(self.run.path)]
        with open(self.folder / f"{self.name}.out", "ab") as out, open(self.folder / f"{self.name}.err", "wb") as err:
            train = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            yield train
        finally:
            _send(train, signal.SIGKILL)
            train.wait()


def _send(train: Train, number: Signals) -> None:
    """SIGKILL goes to all of its processes, another signal to the first alone: what that makes of it holds for all."""
    with suppress(ProcessLookupError):  # it has ended by itself
        if number == signal.SIGKILL:
            os.killpg(train.pid, number)
        else:
            train.send_signal(number)


@contextmanager
def progress(steps: int) -> Iterator[Tell]:
    """Show which run is at which step."""
    with closing(Progress()) as bar:
        yield lambda name, step: bar.show(f"{name}: step {step}/{steps}", step / steps)
