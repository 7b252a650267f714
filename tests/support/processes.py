"""Real processes under a hard time limit: SIGTERM does not end a deadlock, SIGKILL does."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

Finished = subprocess.CompletedProcess[str]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.preloaded"])


def run_command(arguments: list[str], *, timeout: float = 120, env: dict[str, str] | None = None) -> Finished:
    """Run `python ARGUMENTS`; past the limit it and all it started are killed, and the test fails."""
    process = start_command(arguments, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise AssertionError(f"{arguments} took over {timeout} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start_command(arguments: list[str], env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start `python ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(env or {})},
    )


def kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any, timeout: float = 60) -> None:
    """Call `function(rank, world, *arguments)` in `world` processes joined by gloo; all must return in time."""
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    processes = [
        FORKS.Process(target=_rank, args=(function, rank, world, rendezvous, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, f"exit codes {codes} (None: not done in {timeout} s)"
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def _rank(function: Callable[..., Any], rank: int, world: int, rendezvous: Path, arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    function(rank, world, *arguments)
    dist.barrier()
    dist.destroy_process_group()


class Ranks:
    """`sslm train` on one process, or on several as torchrun starts them, forked from a server that has imported everything."""

    started: ClassVar[list[Any]] = []

    def __init__(self, arguments: list[str], log: Path, world: int = 1, env: dict[str, str] | None = None) -> None:
        self.log, port = log, str(20_000 + time.monotonic_ns() // 1000 % 20_000)
        self.processes = []
        for rank in range(world):
            torchrun = {
                "TORCHELASTIC_RUN_ID": "test",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            variables = {**(torchrun if world > 1 else {}), **(env or {})}
            self.processes.append(FORKS.Process(target=_train, args=(arguments, f"{log}.{rank}", variables)))
            self.processes[-1].start()
        Ranks.started.append(self)

    @classmethod
    def end_all(cls) -> int:
        """End what a test left running, as one that failed does; how many there were."""
        alive = [ranks for ranks in cls.started if ranks.is_alive()]
        for ranks in alive:
            ranks.signal(signal.SIGKILL)
            for process in ranks.processes:
                process.join()
        cls.started.clear()
        return len(alive)

    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int | None = None) -> None:
        """To one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    def wait(self, timeout: float = 60) -> list[int | None]:
        """Exit codes; what is still there after the time is killed, and the test fails."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        codes = [process.exitcode for process in self.processes]
        assert not late, f"ranks {late} took over {timeout} s\n{self.said()}"
        return codes

    def said(self) -> str:
        return "".join(
            Path(f"{self.log}.{rank}").read_text(errors="replace")
            for rank in range(len(self.processes))
            if Path(f"{self.log}.{rank}").is_file()
        )


def _train(arguments: list[str], log: str, env: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    from sslm.train import main

    sys.exit(main(arguments))
