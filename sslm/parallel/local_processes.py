"""A command on several devices of this machine: this process starts itself again, once for each further device.

The processes find each other by a file, hence need no port. If one of the others fails, this one says so with its last
words; the others end with this one, however that ends.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from sslm.parallel.cores import share_of, usable_cpus
from sslm.parallel.launch import CPU_PROCESSES
from sslm.parallel.launchers import GRACE_SECONDS
from sslm.system.errors import UserError
from sslm.system.exits import FAILED, leave
from sslm.system.output import print_error
from sslm.system.ranks import PARENT, die_with_parent
from sslm.system.terminal import mute, plural

MEETING = "SSLM_MEETING_FILE"
"""Environment variable of a process that another one started: where they meet."""
LONGEST_WAIT = timedelta(days=30)


def check_devices(num: int, device: str) -> None:
    """Raise UserError if this machine has fewer devices."""
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    most = gpus or max(os.cpu_count() or 1, CPU_PROCESSES)
    if num > most:
        raise UserError(
            f"--devices {num}: this machine has {plural(most, 'GPU') if gpus else 'no GPU'}; give at most {most}"
        )


@contextmanager
def processes_of(verb: str, arguments: list[str], num: int) -> Iterator[tuple[int, dist.ProcessGroup | None]]:
    """Join (or start, in the process that was typed) the processes of `sslm VERB ARGUMENTS`.

    Yields:
        This process' rank and the group of all, for tensors on the CPU; None if this is the only one.
    """
    if num == 1:
        yield 0, None
        return
    if meeting := os.environ.get(MEETING):
        die_with_parent()
        mute()
        with _joined(int(os.environ["LOCAL_RANK"]), num, meeting) as group:
            yield int(os.environ["LOCAL_RANK"]), group
        return
    threads = os.environ.get("OMP_NUM_THREADS") or str(share_of(0, num, usable_cpus()).threads)
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory() as folder:
        words = [Path(folder) / f"rank-{rank}" for rank in range(1, num)]
        own = {MEETING: f"{folder}/meeting", PARENT: str(os.getpid()), "OMP_NUM_THREADS": threads}
        children = []
        for rank, file in enumerate(words, 1):
            with file.open("wb") as stream:
                command = [sys.executable, "-m", "sslm", verb, *arguments]
                env = {**os.environ, **own, "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stream))
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(children, words, ended), daemon=True, name="others' end")
        watch.start()
        try:
            with _joined(0, num, f"{folder}/meeting") as group:
                yield 0, group
        finally:
            ended.set()
            watch.join()
            for child in children:
                child.kill()
                child.wait()


def _watch(children: list["subprocess.Popen[bytes]"], words: list[Path], ended: threading.Event) -> None:
    """If one of the others fails, end this process, which waits for it and may not know."""
    while not ended.wait(0.5):
        for rank, (child, file) in enumerate(zip(children, words, strict=True), 1):
            if child.poll() and not ended.wait(GRACE_SECONDS):  # else this process has said what is wrong, and ends
                lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
                print_error(f"process {rank} of this command has ended; its last words: {(lines or ['none'])[-1]}")
                for other in children:
                    other.kill()
                leave(FAILED)


@contextmanager
def _joined(rank: int, num: int, meeting: str) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num, timeout=LONGEST_WAIT)
    try:
        yield dist.group.WORLD  # type: ignore[misc]
        dist.barrier()  # nobody leaves before all have what they need
    finally:
        dist.destroy_process_group()
