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
from typing import Any

import torch.distributed as dist

Finished = subprocess.CompletedProcess[str]


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
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any, timeout: float = 60) -> None:
    """Call `function(rank, world, *arguments)` in `world` processes joined by gloo; all must return in time."""
    context = multiprocessing.get_context("forkserver")
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    processes = [
        context.Process(target=_rank, args=(function, rank, world, rendezvous, arguments)) for rank in range(world)
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
