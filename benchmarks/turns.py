"""Contestants that train in turns: each in a process of its own, which waits until it may take its next steps.

    python benchmarks/turns.py '{"trainer": "bare", "warm": 200, "length": 50, …}'

Torch calls a hook after each optimizer step of whatever trains. Every `length` steps the hook tells what they took, and
waits; so any trainer can take turns with others, as it is, without knowing of it.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

Task = dict[str, Any]

TURNS = "TURNS"
"""Environment variable with the two file descriptors of a process that takes turns: to read from, to write to."""


class Turns:
    """In the process that trains: counts its steps, and waits for its turn.

    Args:
        warm: steps before the first turn.
        length: steps of a turn.
    """

    def __init__(self, warm: int, length: int) -> None:
        self.left, self.length = warm, length
        self.losses: dict[int, float] = {}
        """Losses before the first turn, by step."""
        self._hook: Any = None
        self.began: tuple[float, float] | None = None
        read, write = map(int, os.environ.pop(TURNS).split())
        self.reader, self.writer = os.fdopen(read), os.fdopen(write, "w", buffering=1)

    def take(self) -> None:
        """Wait for a turn every so many optimizer steps, from now on and to the end of this process."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self._after_step)

    def watch(self, model: Any) -> None:
        """Keep what a transformers model says of its loss, until the first turn."""

        def keep(_: Any, given: Any, output: Any) -> None:
            self.losses[len(self.losses) + 1] = float(output.loss)

        self._hook = model.register_forward_hook(keep)

    def _after_step(self, *_: Any) -> None:
        self.left -= 1
        if self.left:
            return
        if self.began is None:
            if self._hook is not None:
                self._hook.remove()
            with open("losses.jsonl", "w") as file:
                for step, loss in self.losses.items():
                    tell(file, {"step": step, "train/loss": loss})
            tell(self.writer, {})
        else:
            wall, cpu = (now - then for now, then in zip(clocks(), self.began, strict=True))
            tell(self.writer, {"wall": wall / self.length, "cpu": cpu / self.length})
        self.left = self.length
        if not self.reader.readline():  # whoever gives the turns has gone
            leave()
        self.began = clocks()


def clocks() -> tuple[float, float]:
    """Seconds, by the clock and of this process' threads together."""
    return time.perf_counter(), time.process_time()


def tell(stream: Any, what: dict[str, Any]) -> None:
    stream.write(json.dumps(what) + "\n")


def leave() -> NoReturn:
    os._exit(0)


class Contestant:
    """The process of one that trains, as whoever gives the turns sees it.

    Args:
        threads: OMP_NUM_THREADS; None leaves it unset.
    """

    def __init__(self, task: Task, folder: Path, threads: int | None, python: str = sys.executable) -> None:
        folder.mkdir(parents=True)
        self.stderr = folder / "stderr"
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        env |= {TURNS: f"{theirs_in} {theirs_out}"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with open(folder / "stdout", "wb") as out, open(self.stderr, "wb") as err:
            self.process = subprocess.Popen(
                [python, __file__, json.dumps(task | {"folder": str(folder)})],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=env,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = os.fdopen(ours_in), os.fdopen(ours_out, "w", buffering=1)

    def answer(self) -> Task:
        """What it tells next; raises RuntimeError if it has ended instead."""
        line = self.reader.readline()
        if not line:
            raise RuntimeError(f"ended with {self.process.wait()}: {self.stderr.read_text(errors='replace')[-2000:]}")
        told: Task = json.loads(line)
        return told

    def turn(self) -> Task:
        """Let it take its steps, and return what they took."""
        self.writer.write("go\n")
        return self.answer()

    def end(self) -> None:
        """End it, and all that it started."""
        with suppress(ProcessLookupError):  # it has ended itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.close()
        self.writer.close()


def main() -> None:
    task = json.loads(sys.argv[1])
    trainer = importlib.import_module(f"trainers.{task['trainer']}")
    trainer.train(task, Turns(task["warm"], task["length"]))


if __name__ == "__main__":
    main()
