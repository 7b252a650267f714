"""Real processes under a hard time limit: SIGTERM does not end a deadlock, SIGKILL does."""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from sslm.train import main

Finished = subprocess.CompletedProcess[str]
Verb = Callable[[list[str]], int]
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


def free_port() -> int:
    """Return a free port, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


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
    """`sslm train` on one process, or several as under torchrun, forked from a server that has imported everything.

    Args:
        arguments: the flags of `sslm train`.
        log: rank R's output goes to LOG.R.
        world: how many processes; without it as many as --devices says.
        env: more variables of all the processes.
        before: called in each of them first; a function of a module (or a partial of one), for it is pickled.
        verb: what is called with the arguments, if not `sslm train`; returns the exit code.
    """

    started: ClassVar[list[Any]] = []

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        world: int | None = None,
        env: dict[str, str] | None = None,
        before: Callable[[], object] | None = None,
        verb: Verb = main,
    ) -> None:
        if world is None:
            world = int(arguments[arguments.index("--devices") + 1]) if "--devices" in arguments else 1
        self.log, port = log, str(free_port())
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
            Path(f"{log}.{rank}").unlink(missing_ok=True)
            self.processes.append(
                FORKS.Process(target=_forked, args=(verb, arguments, f"{log}.{rank}", variables, before))
            )
            self.processes[-1].start()
        Ranks.started.append(self)

    @classmethod
    def end_all(cls) -> int:
        """End what a test left running, as one that failed does; how many there were."""
        alive = [ranks for ranks in cls.started if ranks.is_alive()]
        for ranks in alive:
            ranks.end()
            for process in ranks.processes:
                process.join()
        cls.started.clear()
        return len(alive)

    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def poll(self) -> int | None:
        """The first rank's exit code, or None while any of them runs."""
        return None if self.is_alive() else self.processes[0].exitcode

    def signal(self, number: int, rank: int | None = None) -> None:
        """To one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    def end(self) -> None:
        """Kill what is left of them, and of what they started: a killed process' workers outlive it."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()  # which has no group of its own yet

    def wait(self, timeout: float = 60) -> list[int | None]:
        """Exit codes; what is still there after the time is killed, and the test fails."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.end()
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


def _forked(
    verb: Verb, arguments: list[str], log: str, env: dict[str, str], before: Callable[[], object] | None
) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(env)
    if before:
        before()
    sys.exit(verb(arguments))


def train_forked(
    arguments: list[str],
    log: Path,
    world: int | None = None,
    *,
    timeout: float = 150,
    env: dict[str, str] | None = None,
    before: Callable[[], object] | None = None,
    verb: Verb = main,
) -> Finished:
    """Run `sslm train ARGUMENTS` in forked processes to its end: the first rank's exit code, and what all said."""
    ranks = Ranks(arguments, log, world, env, before, verb)
    code = ranks.wait(timeout)[0]
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, ranks.said(), "")
