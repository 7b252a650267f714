"""The host's memory that a process may take."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sslm.system.limits import control_groups

PROCESS_BYTES = 700 << 20
"""Memory of a process before it trains: torch, transformers, Lightning."""


def free_memory(processes: int = 1, root: Path = Path("/")) -> float:
    """Return the bytes that each of some processes, this one among them, may take for its run.

    It is what the kernel calls available, or what the container's limits leave (cgroups, v1 and v2) if that is less.
    """
    free = min([_available(root), *_left_in_groups(root)])
    return max(free - (processes - 1) * PROCESS_BYTES, 0) / processes


def resident_memory() -> int | None:
    """Return the bytes of memory that this process has, or None if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return None


def _available(root: Path) -> float:
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    with suppress(OSError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def _left_in_groups(root: Path) -> Iterator[float]:
    """Yield the bytes that this process' group, and each group around it, may still take."""
    for group in control_groups("memory", root):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # no limit ("max"), or a container that does not show it
                most, used = int((group / limit).read_text()), int((group / usage).read_text())
                yield max(most - used + _reclaimable(group), 0)


def _reclaimable(group: Path) -> int:
    """Return the bytes of files that the kernel gives up first."""
    with suppress(OSError):
        found = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
