"""Work for all cores: tasks in processes of their own, a few ahead, errors of the user's in one sentence."""

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sslm.system.errors import RunFailed

AHEAD = 2
"""Tasks that wait beside those that are worked on: a reader is done before a worker asks."""
PR_SET_PDEATHSIG = 1

Task = tuple[Any, ...]
Result = TypeVar("Result")


def each(work: Callable[..., Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Call `work(*task)` for each task, and yield what it returns as it is done, in any order.

    Args:
        workers: number of processes; 1: this one does the work.

    Raises:
        RunFailed: a process was killed, as it is if memory runs out.
    """
    if workers == 1:
        for task in tasks:
            yield work(*task)
        return
    context = multiprocessing.get_context("spawn")  # no threads and locks of this process
    pool = ProcessPoolExecutor(workers, context, _leave_signals_to_parent)
    running: set[Future[Result]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(work, *task))
            while len(running) >= workers + AHEAD:
                yield from _done(running)
        while running:
            yield from _done(running)
    except BrokenProcessPool:
        why = "a worker was killed, as the system does if memory runs out"
        raise RunFailed(f"{why}; run the same command again with fewer --workers") from None
    finally:
        for process in list((pool._processes or {}).values()):  # what they write is whole or not there
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _done(running: set[Future[Result]]) -> Iterator[Result]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    for future in done:
        yield future.result()


def _leave_signals_to_parent() -> None:
    """A terminal sends Ctrl-C to all processes; a worker ends with its parent, however that ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
