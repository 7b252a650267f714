"""Forked runs within a time: where `gpu.py` does its parts, and what it writes of each."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from gpu_models import Sizes

from sslm.train import main as train

Facts = dict[str, Any]
Watch = Callable[[list[str]], Any]
"""Runs `sslm train` with these arguments, and returns what it found."""


class Wrong(Exception):
    """A part's check does not hold. What was found so far stays in its facts."""

    def __init__(self, why: str, facts: Facts | None = None) -> None:
        super().__init__(why)
        self.facts = facts or {}


class Late(Exception):
    """A part's time is over."""


@dataclass
class Run:
    """A function in a forked process of its own, which writes what it found as JSON."""

    folder: Path
    pid: int
    deadline: float
    code: int | None = None

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return (self.said.strip().splitlines() or ["nothing"])[-1][:400]

    @property
    def found(self) -> Any:
        """What the function returned."""
        return json.loads((self.folder / "found.json").read_text())

    @property
    def rows(self) -> list[Facts]:
        file = self.folder / "run/metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [row for row in map(json.loads, lines) if "train/loss" in row]

    def numbers(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    @property
    def losses(self) -> list[float]:
        return self.numbers("train/loss")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; past its time it is killed."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        if self.code is None and time.monotonic() > self.deadline:
            self.kill()
            raise Late(f"{self.folder.name} took too long; it had said: {self.last_line}")
        return self.code is None

    def wait(self, code: int = 0) -> "Run":
        """Wait for its end, which must have this exit code."""
        while self.is_running:
            time.sleep(0.02)
        if self.code != code:
            raise Wrong(f"{self.folder.name} ended with {self.code}, not {code}: {self.last_line}")
        return self

    def kill(self) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.code = -signal.SIGKILL


@dataclass
class Lab:
    """Where runs are forked, within a part's time."""

    folder: Path
    sizes: Sizes
    deadline: float = 0.0
    started: list[Run] = field(default_factory=list)

    def fork(self, name: str, function: Callable[[], Any], folder: Path | None = None) -> Run:
        """Start a function in a process of its own; it exits with 0, or with the code that SystemExit brings.

        Half as many run at a time as there are cores.
        """
        while sum(run.is_running for run in self.started) >= max((os.cpu_count() or 1) // 2, 1):
            time.sleep(0.02)
        folder = folder or self.folder / name.replace(" ", "-").replace(",", "")
        folder.mkdir(exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _work(folder, function)
        self.started.append(Run(folder, pid, self.deadline))
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return self.started[-1]

    def text(self, copies: int = 1) -> Path:
        """A file with Python's documentation, so many times, in documents that a line of dashes ends."""
        file = self.folder / f"text-{copies}.txt"
        if not file.is_file():
            file.write_text("\n-----\n".join(topics[name] for name in sorted(topics) * copies))
        return file

    def train(self, name: str, *flags: str, copies: int = 1, watch: Watch | None = None) -> Run:
        """Start `sslm train` on so many copies of the text; `watch` wraps it, and says what it found."""
        folder = self.folder / name.replace(" ", "-").replace(",", "")
        always = f"--run_dir {folder}/run --data.cache_dir {self.folder}/cache --data.train {self.text(copies)}"
        arguments = [*f"{' '.join(flags)} {always}".split(), "--data.document_separator", "\n-----\n"]
        return self.fork(name, lambda: (watch or plainly)(arguments), folder)

    def end(self) -> None:
        for run in self.started:
            run.kill()
        self.started.clear()


def _work(folder: Path, function: Callable[[], Any]) -> None:
    os.setpgid(0, 0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        (folder / "found.json").write_text(json.dumps(function()))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plainly(arguments: list[str]) -> None:
    if code := train(arguments):
        raise SystemExit(code)


@dataclass(frozen=True)
class Part:
    work: Callable[[Lab], Facts]
    seconds: float
    """Its limit."""

    @property
    def name(self) -> str:
        return self.work.__name__

    @property
    def what(self) -> str:
        """What it looks at, in a line."""
        return (self.work.__doc__ or "").partition("\n")[0]


@contextmanager
def lines(out: Path | None) -> Iterator[Callable[[Facts], None]]:
    """Write lines of JSON to stdout and to a file, each at once."""
    stream = out.open("a") if out is not None else None

    def write(line: Facts) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if stream is not None:
            print(text, file=stream, flush=True)
            os.fsync(stream.fileno())

    yield write
    if stream is not None:
        stream.close()


def perform(part: Part, lab: Lab, seconds: float, deadline: float) -> Facts:
    """Do a part within these seconds and the time that is left; return its line."""
    began = time.monotonic()
    lab.deadline = min(began + seconds, deadline)
    line: Facts = {"part": part.name, "status": "ok"}
    try:
        if deadline < began:
            raise Late("no time was left for it")
        line |= part.work(lab)
    except Late as late:
        line |= {"status": "late", "why": str(late)}
    except Wrong as wrong:
        line |= {"status": "wrong", "why": str(wrong), **wrong.facts}
    except Exception as error:  # of this file: the other parts go on
        line |= {"status": "broken", "why": f"{type(error).__name__}: {error}"}
    lab.end()
    return line | {"seconds": round(time.monotonic() - began, 1)}
