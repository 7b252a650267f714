"""The host: cores, memory, and the system's limits on a process."""

import math
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from sslm.cli.doctor.finding import Finding, Level
from sslm.parallel.checks import open_files_needed
from sslm.parallel.cores import cpu_quota, usable_cpus
from sslm.parallel.planning.host_memory import PROCESS_BYTES, free_memory
from sslm.system.limits import control_groups
from sslm.system.terminal import GIB, MIB, bytes_in_words, plural

SHARED_MEMORY = Path("/dev/shm")
TOO_LITTLE_SHARED, LITTLE_SHARED = 64 * MIB, GIB
"""What Docker gives if nobody asks, where NCCL and loader processes end; what a node is well served with."""
THREADS = 64
"""Threads of a process that trains, beside one for each core: loaders', gloo's or NCCL's, the saver's."""
CONTAINER = "of a container, give docker run"


def look() -> Iterator[Finding]:
    """Yield what there is to know of the host."""
    yield cores()
    yield memory()
    yield shared_memory()
    yield open_files()
    yield processes()
    yield locked_memory()


def ranks_here() -> int:
    """Processes that a run on this node has at most: one for each GPU; two on CPUs, to try a strategy."""
    return max(torch.cuda.device_count(), 2)


def cores() -> Finding:
    """Compare the cores that this process may use with the threads that torch takes."""
    usable, quota = len(usable_cpus()), cpu_quota()
    shares = f", of which the container's quota leaves {quota:g}" if quota is not None and quota < usable else ""
    found = f"{plural(usable, 'core')} of {os.cpu_count()}{shares}"
    most = usable if quota is None else max(min(usable, math.floor(quota)), 1)
    asked = os.environ.get("OMP_NUM_THREADS")
    threads = torch.get_num_threads()
    found += f"; torch takes {plural(threads, 'thread')} (OMP_NUM_THREADS {asked or 'not set'})"
    if threads > most:
        return Finding("cores", found, "bad", "speed: threads wait for each other", f"export OMP_NUM_THREADS={most}")
    if asked is not None and asked.isdecimal() and int(asked) > most:
        hurts = "speed of libraries that obey it; torch doesn't"
        return Finding("cores", found, "note", hurts, f"export OMP_NUM_THREADS={most}")
    if threads < most and not torch.cuda.device_count():
        return Finding("cores", found, "note", "speed of one process on the CPU: cores idle", "unset OMP_NUM_THREADS")
    return Finding("cores", found)


def memory() -> Finding:
    """Tell the memory that a run may take."""
    with suppress(OSError, ValueError):
        total = bytes_in_words(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        free, needed = free_memory(), PROCESS_BYTES * ranks_here()
        found = f"{bytes_in_words(free)} are left to this process, of {total}"
        if free < needed:
            hurts = f"{plural(ranks_here(), 'process')} take {bytes_in_words(needed)} before they train"
            return Finding("memory", found, "bad", hurts, f"end other programs; {CONTAINER} more --memory")
        return Finding("memory", found)
    return Finding("memory", "unknown", "note")


def shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Tell the size of the folder through which processes of a node share memory."""
    if not folder.is_dir():
        return Finding(str(folder), "not there", "note", "NCCL and --data.num_workers share memory by it on Linux")
    usage = shutil.disk_usage(folder)
    found = f"{bytes_in_words(usage.total)}, {bytes_in_words(usage.free)} of them free"
    if usage.free >= LITTLE_SHARED:
        return Finding(str(folder), found)
    level: Level = "bad" if usage.free <= TOO_LITTLE_SHARED else "note"
    more = f"remove what lies in it; {CONTAINER} --shm-size 1g"
    return Finding(str(folder), found, level, "NCCL and --data.num_workers share memory by it", more)


def open_files() -> Finding:
    """Compare the files that may be open with what a run on this node needs; training raises the soft limit itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(world=ranks_here(), num_workers=1)
    found = f"{limit_in_words(soft)}, and at most {limit_in_words(hard)}"
    if not suffices(hard, needed):
        return Finding("open files", found, "bad", f"a run may need {needed}", "ulimit -n 4096, or your container's")
    return Finding("open files", found)


def processes() -> Finding:
    """Compare the threads that this user may have, or its container, with what a run on this node starts."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    found, needed = f"{limit_in_words(soft)} processes and threads", ranks_here() * (THREADS + len(usable_cpus()))
    limits = [soft] if soft != resource.RLIM_INFINITY and os.geteuid() else []  # it doesn't bind root
    for group in control_groups("pids"):
        with suppress(OSError, ValueError):
            limits.append(int((group / "pids.max").read_text()) - int((group / "pids.current").read_text()))
    if limits and min(limits) < needed:
        more = f"ulimit -u; {CONTAINER} --pids-limit"
        return Finding("processes", f"{min(limits)} are left", "bad", f"a run may start {needed}", more)
    return Finding("processes", found)


def locked_memory() -> Finding:
    """Tell how much memory may be locked, which InfiniBand needs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else bytes_in_words(soft)
    if soft != resource.RLIM_INFINITY and Path("/sys/class/infiniband").is_dir():
        more = f"ulimit -l unlimited; {CONTAINER} --ulimit memlock=-1"
        return Finding("locked memory", found, "bad", "NCCL over InfiniBand registers memory", more)
    return Finding("locked memory", found)


def suffices(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed


def limit_in_words(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
