"""What devices there are, or might be: their memory, what they compute, what they cost."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sslm.errors import UserError, nearest

GIB = 1 << 30

PRICED = "2025"
"""When the prices below were what smaller clouds asked on demand; large ones ask two or three times as much."""


class Kind(NamedTuple):
    """A GPU that can be had by the hour."""

    title: str
    memory: float
    """GiB, as the driver tells it."""
    price: float
    """US dollars an hour, typically (see PRICED)."""
    has_bf16: bool = True
    has_fp8: bool = False


KINDS = {
    "b200": Kind("B200", 178.4, 5.00, has_fp8=True),
    "h200": Kind("H200", 139.8, 3.50, has_fp8=True),
    "h100": Kind("H100", 79.2, 2.75, has_fp8=True),
    "a100-80": Kind("A100 80GB", 79.2, 1.80),
    "a100-40": Kind("A100 40GB", 39.4, 1.30),
    "l40s": Kind("L40S", 44.4, 1.00, has_fp8=True),
    "l4": Kind("L4", 22.0, 0.70, has_fp8=True),
    "a10g": Kind("A10G", 22.0, 0.75),
    "v100": Kind("V100", 15.8, 0.55, has_bf16=False),
    "t4": Kind("T4", 14.6, 0.40, has_bf16=False),
    "rtx4090": Kind("RTX 4090", 23.5, 0.50, has_fp8=True),
    "rtx3090": Kind("RTX 3090", 23.6, 0.25),
}


@dataclass(frozen=True)
class Machine:
    """Args:
    device: in words.
    memory: bytes of each device; of a CPU process its share of what is free.
    devices: per node.
    peak: FLOP/s of each device; None: unknown.
    price: US dollars per device and hour; None: unknown.
    precision: what `auto` means there.
    has_fp8: whether it multiplies in 8 bits.
    """

    device: str
    memory: float
    devices: int
    num_nodes: int = 1
    is_gpu: bool = True
    peak: float | None = None
    price: float | None = None
    precision: str = "bf16-mixed"
    has_fp8: bool = False

    @property
    def world(self) -> int:
        return self.devices * self.num_nodes


def named(text: str) -> Machine:
    """A machine by the name of its device: h100, h100:8, h100:8x4 (four nodes of eight), cpu:2 (processes, of this machine).

    Raises:
        UserError: an unknown name, or no number of devices.
    """
    name, _, size = text.partition(":")
    numbers = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size or "1")
    if numbers is None:
        raise UserError(
            f"--plan_for {text}: {size} is no number of devices; expected {name}:8, or {name}:8x4 for 4 nodes of 8"
        )
    devices, num_nodes = int(numbers[1]), int(numbers[2] or 1)
    if name == "cpu":
        return cpu(devices, num_nodes)
    if name not in KINDS:
        raise UserError(
            f"--plan_for {text}: there is no device {name}{nearest(name, [*KINDS, 'cpu'])}; known are {', '.join(KINDS)} and cpu"
        )
    from sslm.flops import listed_peak

    kind = KINDS[name]
    return Machine(kind.title, kind.memory * GIB, devices, num_nodes, True, listed_peak(kind.title), kind.price,
                   "bf16-mixed" if kind.has_bf16 else "16-mixed", kind.has_fp8)  # fmt: skip


def here(accelerator: str, devices: int, num_nodes: int = 1) -> Machine:
    """This machine (of several nodes, each like it): `accelerator` cpu or gpu, `devices` used of each node."""
    if accelerator == "cpu":
        return cpu(devices, num_nodes)
    import torch

    from sslm.flops import is_named, listed_peak
    from sslm.models.float8 import supports_float8

    properties = [torch.cuda.get_device_properties(number) for number in range(devices)]
    least, title = min(p.total_memory for p in properties), properties[0].name
    kind = next((kind for kind in KINDS.values() if is_named(title, kind.title)), None)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine(title.removeprefix("NVIDIA "), least, devices, num_nodes, True,
                   listed_peak(title), kind.price if kind else None,
                   "bf16-mixed" if has_bf16 else "16-mixed", supports_float8(torch.device("cuda", 0)))  # fmt: skip


def cpu(processes: int, num_nodes: int = 1) -> Machine:
    return Machine("CPU process", free_memory(processes), processes, num_nodes, is_gpu=False, precision="32")


def gib(number: float) -> str:
    """Bytes as people read them: 512 MiB, 13.9 GiB.

    >>> gib(3 << 29), gib(9 << 20)
    ('1.5 GiB', '9 MiB')
    """
    if number < 1 << 20:
        return f"{number / 1024:,.0f} KiB"
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / (1 << 20):,.0f} MiB"


# ------------------------------------------------------------------------------------------------ the host's memory

PROCESS_BYTES = 700 << 20
"""What a process takes before it trains: torch, transformers, Lightning."""


def free_memory(processes: int = 1, root: Path = Path("/")) -> float:
    """Bytes that each of some processes may take for its run, this one among them.

    What the kernel calls available, or what the container's limits leave (cgroups, v1 and v2), if that is less.
    """
    free = min([_available(root), *_left_in_groups(root)])
    return max(free - (processes - 1) * PROCESS_BYTES, 0) / processes


def _available(root: Path) -> float:
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    with suppress(OSError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def _left_in_groups(root: Path) -> Iterator[float]:
    """What this process' group, and each that it lies in, may still take."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounted, limit, usage = {
            "": (root / "sys/fs/cgroup", "memory.max", "memory.current"),
            "memory": (root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        }.get(controllers, (root, "", ""))
        if not limit:
            continue
        inside = mounted / path.lstrip("/")
        for group in (inside, *inside.parents):
            if group == mounted.parent:
                break
            with suppress(OSError, ValueError):  # no limit ("max"), or a container that does not show it
                most, used = int((group / limit).read_text()), int((group / usage).read_text())
                yield max(most - used + _reclaimable(group), 0)


def _reclaimable(group: Path) -> int:
    """Bytes of files that the kernel gives up first."""
    with suppress(OSError):
        found = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
