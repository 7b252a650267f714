"""The system's limits on a process, raised as far as they may be."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from sslm.system.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of its limits (malloc.h)."""
LARGEST, KEPT = 32 << 20, 1 << 30
"""Bytes of the largest block that is kept, which is where glibc ends by itself, and of all that are kept."""


def allow_open_files(needed: int) -> None:
    """Raise the number of files that this process and its children may have open to what the system allows.

    Raises:
        UserError: that is fewer than `needed`. Ranks and loader processes that find no room for a pipe or a socket may
            wait for each other for ever.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"only {hard} files may be open at once, this run may need {needed}: raise the limit (ulimit -n 4096, or "
            f"your container's), or lower --devices and --data.num_workers"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as tensors of a step are taken again in the next; nothing with another C library.

    By itself it gives what is free at the end of the heap back to the kernel, which zeroes each page anew when it is
    next touched. Limits that the user gave it by MALLOC_… or GLIBC_TUNABLES stay.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not chosen else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folder of this process' control group, and of each group around it (cgroups, v1 and v2).

    Args:
        controller: what v1 has a hierarchy of its own for: memory, cpu, pids.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        inside = mounted / path.lstrip("/")
        for group in (inside, *inside.parents):
            if group == mounted.parent:
                break
            yield group
