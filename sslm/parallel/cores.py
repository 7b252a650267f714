"""Which cores a process computes on, and with how many threads.

torch takes a thread for each logical core, whatever else runs here. Two threads on one physical core wait for each
other's multiplications; a thread that the container's quota leaves no time for is waited for; and memory of another
NUMA node is slower. So processes on one machine share its physical cores, and on CPUs each stays on one node.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from sslm.system.limits import control_groups
from sslm.system.terminal import plural

ROOT = Path("/")


class Share(NamedTuple):
    """What a process computes on."""

    threads: int
    cpus: frozenset[int] | None = None
    """Logical cores of the NUMA node that it stays on; None: it may go wherever it is let."""


def usable_cpus() -> frozenset[int]:
    """Return the logical cores that this process may be scheduled on."""
    with suppress(AttributeError):  # not Linux
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def share_of(process: int, num: int, cpus: frozenset[int], root: Path = ROOT) -> Share:
    """Return what the process-th of so many on this machine computes on.

    Args:
        cpus: logical cores that they may all be scheduled on.
    """
    nodes = [node & cpus for node in numa_nodes(root) if node & cpus]
    together, node = num, None
    if num > 1 and len(nodes) > 1:
        numbers = [other * len(nodes) // num for other in range(num)]
        together, node = numbers.count(numbers[process]), nodes[numbers[process]]
    threads = num_physical(cpus if node is None else node, root) // together
    if (quota := cpu_quota(root)) is not None:
        threads = min(threads, math.floor(quota / num))
    return Share(max(threads, 1), node)


def num_physical(cpus: frozenset[int], root: Path = ROOT) -> int:
    """Count physical cores; a logical core of which the system tells nothing is one."""

    def siblings(cpu: int) -> frozenset[int]:
        with suppress(OSError, ValueError):
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
            return numbers_in((folder / "thread_siblings_list").read_text())
        return frozenset([cpu])

    return len(set(map(siblings, cpus)))


def numa_nodes(root: Path = ROOT) -> list[frozenset[int]]:
    """Return each node's logical cores, in the nodes' order; none if the system tells nothing."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    found = []
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("node"))):
        with suppress(OSError, ValueError):
            found.append(numbers_in((folder / "cpulist").read_text()))
    return found


def numbers_in(listed: str) -> frozenset[int]:
    """Read the kernel's lists of numbers.

    >>> sorted(numbers_in("0-2,8")), sorted(numbers_in(""))
    ([0, 1, 2, 8], [])
    """

    def ranges() -> Iterator[range]:
        for part in filter(None, listed.strip().split(",")):
            first, _, last = part.partition("-")
            yield range(int(first), int(last or first) + 1)

    return frozenset(number for numbers in ranges() for number in numbers)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the cores' worth of time that the control groups leave (v1 and v2), or None for no limit."""
    found: list[float] = []
    for group in control_groups("cpu", root):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            v1 = int((group / "cpu.cfs_quota_us").read_text()), int((group / "cpu.cfs_period_us").read_text())
            found += [v1[0] / v1[1]] if v1[0] > 0 else []
    return min(found, default=None)


def take(share: Share) -> str | None:
    """Compute on a share from now on; say in words what is not torch's default, None if nothing is.

    OMP_NUM_THREADS, which users, torchrun and srun set, decides if it is there.
    """
    words = []
    if "OMP_NUM_THREADS" not in os.environ and share.threads != torch.get_num_threads():
        torch.set_num_threads(share.threads)
        words.append(f"{plural(share.threads, 'thread')} a process")
    if share.cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cpus)
        words.append("each on one NUMA node")
    return ", ".join(words) or None


def multiplies_in_bf16(root: Path = ROOT) -> bool:
    """Whether this CPU has tiles that multiply bf16 (AMX), which ONEDNN_MAX_CPU_ISA may forbid."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    with suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", (root / "proc/cpuinfo").read_text(), re.MULTILINE)
        has_tiles = flags is not None and "amx_bf16" in flags[1].split()
        return has_tiles and ("AMX" in allowed or allowed in ("ALL", "DEFAULT"))
    return False
