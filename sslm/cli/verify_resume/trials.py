"""Run train in processes of its own, interrupt it at random steps and start it again until it is done."""

import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import Signals
from typing import NamedTuple

from sslm.config import Config
from sslm.runs.folder import RunFolder
from sslm.system.exits import DONE, STOPPED
from sslm.system.terminal import Progress, say

SECONDS_BETWEEN_LOOKS, LAST_LINES = 0.005, 12
LATEST = 0.8
"""Fraction of the run after which it is not interrupted: it would be over before the signal comes."""
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: STOPPED}
"""Exit code after a signal."""

Train = subprocess.Popen[bytes]
ShowStep = Callable[[str, int], None]
"""Shows a run's name and step."""


class Interruption(NamedTuple):
    signal: Signals
    step: int
    delay: float
    """Steps' time to wait after the step is reached: to fall amid a step, a save or a validation."""


@dataclass
class Trial:
    """One run and how it went."""

    name: str
    folder: Path
    """Where its run folder and its output go."""
    flags: Sequence[str]
    """Flags of train for each start, but for the run folder."""
    config: Config
    """Settings of the starts that have the variation's flags, if there are any."""
    variation: str = ""
    """More flags for every other start."""
    interruptions: list[str] = field(default_factory=list)
    """Interruptions so far: `SIGKILL at step 7`."""
    seconds: float = 0.0
    code: int | None = None
    """Last exit code, or None if it hung or was not started."""
    failure: str = ""
    """What went wrong, or empty if the run is done."""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / self.name)

    @property
    def step(self) -> int:
        """Step of the last row of metrics."""
        rows = self.run.rows()
        return int(rows[-1]["step"]) if rows else 0

    def last_lines(self) -> list[str]:
        """Return the end of what the last start printed to stderr."""
        file = self.folder / f"{self.name}.err"
        return file.read_text(errors="replace").splitlines()[-LAST_LINES:] if file.is_file() else []

    def carry_out(self, steps: int, signals: list[Signals], rng: Random, show: ShowStep, patience: float) -> None:
        """Start the run until it has ended by itself; a signal ends each start but the last, at a random step.

        Args:
            patience: seconds without a new row after which the run has hung.
        """
        began = time.monotonic()
        try:
            for start, number in enumerate([*signals, None]):
                reach = max((round(LATEST * steps) - self.step) // max(len(signals) - start, 1), 1)
                step, delay = self.step + 1 + rng.randrange(reach), 2 * rng.random()
                interruption = None if number is None else Interruption(number, step, delay)
                variation = shlex.split(self.variation) if start % 2 else []
                if not self._start([*self.flags, *variation], interruption, show, patience):
                    break
        except subprocess.TimeoutExpired:
            self.failure = f"hung: nothing new for {patience:.0f} s after step {self.step}"
        self.seconds = time.monotonic() - began

    def _start(self, flags: Sequence[str], interruption: Interruption | None, show: ShowStep, patience: float) -> bool:
        """Start the run once; return whether to start it again."""
        self.code = None
        with self._process(flags) as train:
            self._watch(train, interruption and interruption.step, show, patience)
            if interruption is None or train.poll() is not None:
                self.code = train.wait()
                self.failure = "" if self.code == DONE else f"exit code {self.code} after step {self.step}"
                return False
            time.sleep(interruption.delay * self._seconds_per_step())
            self.interruptions.append(f"{interruption.signal.name} at step {self.step}")
            say(f"{self.name}: {self.interruptions[-1]}")
            _send(train, interruption.signal)
            self.code = train.wait(patience)
        expected = EXPECTED[interruption.signal]
        if self.code == DONE:
            self.interruptions[-1] += ", too late"
        elif self.code != expected:
            self.failure = f"exit code {self.code} after {self.interruptions[-1]}, expected {expected}"
        return self.code == expected

    def _watch(self, train: Train, until: int | None, show: ShowStep, patience: float) -> None:
        """Wait until the run has ended or reached a step; raises TimeoutExpired if it has hung."""
        seen, seen_at = -1, time.monotonic()
        while train.poll() is None and (until is None or seen < until):
            if (step := self.step) != seen:
                seen, seen_at = step, time.monotonic()
                show(self.name, step)
            if time.monotonic() - seen_at > patience:
                raise subprocess.TimeoutExpired(self.name, patience)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _seconds_per_step(self) -> float:
        rows = (row for row in self.run.rows() if row.get("tokens_per_second"))
        times = [row["tokens"] / row["step"] / row["tokens_per_second"] for row in rows]
        return float(statistics.median(times or [0.0]))

    @contextmanager
    def _process(self, flags: Sequence[str]) -> Iterator[Train]:
        """Run `python -m sslm.train` in a new interpreter and process group; leave none of it."""
        # no fork of a server: forks share its hash seed, which would hide that something depends on a set's order
        command = [sys.executable, "-m", "sslm.train", *flags, "--run_dir", str(self.run.path)]
        with open(self.folder / f"{self.name}.out", "ab") as out, open(self.folder / f"{self.name}.err", "wb") as err:
            train = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        try:
            yield train
        finally:
            _send(train, signal.SIGKILL)
            train.wait()


def _send(train: Train, number: Signals) -> None:
    """Send SIGKILL to all processes of the run, any other signal to the first, which tells the rest."""
    send = os.killpg if number == signal.SIGKILL else os.kill
    with suppress(ProcessLookupError):  # it has ended by itself
        send(train.pid, number)


@contextmanager
def progress(steps: int) -> Iterator[ShowStep]:
    """Show which run is at which step."""
    with closing(Progress()) as bar:
        yield lambda name, step: bar.show(f"{name}: step {step}/{steps}", step / steps)
