"""Runs on fake GPUs: CUDA's real host code, the CPU's arithmetic."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakegpu import environment

GPUS = 4


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    run: Path
    code: int | None
    """None if it took too long."""
    said: str


class FakeGpus:
    """Trains in the fake GPUs' environment, in processes forked from one that has imported everything.

    Args:
        folder: the virtual environment.
        with_ops: whether the CPU's kernels do the arithmetic, or no one does.
    """

    def __init__(self, folder: Path, with_ops: bool) -> None:
        self.collectives = tempfile.mkdtemp(prefix="fake-nccl-", dir="/dev/shm")
        of_kind = {"FAKE_OPS": "1"} if with_ops else {"FAKE_SKIP_COPY_ABOVE": "100000"}
        fakes = {"FAKE_GPUS": str(GPUS), "FAKE_NCCL_FOLDER": self.collectives}
        self.process = subprocess.Popen(
            [folder / "bin/python", "-m", "tests.fakegpu.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=environment.CHECKOUT,
            env={**environment.variables(folder), **of_kind, **fakes},
        )

    def train(
        self,
        run: Path,
        flags: list[str],
        *,
        world: int = 1,
        verb: tuple[Any, ...] = ("train",),
        env: dict[str, str] | None = None,
        timeout: float = 90,
    ) -> Done:
        """Run `sslm train` with these flags in `world` processes; `verb` is a function of `watch`, and arguments."""
        job = {
            "arguments": [*flags, "--run_dir", str(run)],
            "log": str(run.with_name(f"{run.name}.log")),
            "world": world,
            "verb": verb,
            "env": env,
            "timeout": timeout,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the process that forks the runs has ended"
        done = json.loads(answer)
        return Done(run, done["code"], done["said"])

    def close(self) -> None:
        self.process.communicate(timeout=20)  # its input has ended, and so does it
        shutil.rmtree(self.collectives)


@pytest.fixture(scope="session")
def fake_environment() -> Path:
    try:
        return environment.prepare()
    except environment.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def gpus(fake_environment: Path) -> Iterator[FakeGpus]:
    """Four GPUs that compute what the CPU computes."""
    started = FakeGpus(fake_environment, with_ops=True)
    yield started
    started.close()


@pytest.fixture(scope="session")
def hollow_gpus(fake_environment: Path) -> Iterator[FakeGpus]:
    """Four GPUs whose kernels do nothing: for models of real size, whose memory counts."""
    started = FakeGpus(fake_environment, with_ops=False)
    yield started
    started.close()
