"""What devices there are, or might be: their memory, what they compute, what they cost."""

import re
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from sslm.parallel.planning.host_memory import free_memory
from sslm.system.errors import UserError, nearest
from sslm.system.terminal import GIB

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

    kind = KINDS[name]
    return Machine(
        kind.title,
        kind.memory * GIB,
        devices,
        num_nodes,
        True,
        listed_peak(kind.title),
        kind.price,
        "bf16-mixed" if kind.has_bf16 else "16-mixed",
        kind.has_fp8,
    )


def here(accelerator: str, devices: int, num_nodes: int = 1) -> Machine:
    """This machine (of several nodes, each like it): `accelerator` cpu or gpu, `devices` used of each node."""
    if accelerator == "cpu":
        return cpu(devices, num_nodes)
    import torch

    from sslm.parallel.float8 import supports_float8

    properties = [torch.cuda.get_device_properties(number) for number in range(devices)]
    least, title = min(p.total_memory for p in properties), properties[0].name
    kind = next((kind for kind in KINDS.values() if is_named(title, kind.title)), None)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine(
        title.removeprefix("NVIDIA "),
        least,
        devices,
        num_nodes,
        True,
        listed_peak(title),
        kind.price if kind else None,
        "bf16-mixed" if has_bf16 else "16-mixed",
        supports_float8(torch.device("cuda", 0)),
    )


def cpu(processes: int, num_nodes: int = 1) -> Machine:
    return Machine("CPU process", free_memory(processes), processes, num_nodes, is_gpu=False, precision="32")


# ------------------------------------------------------------------------------------------------ the host's memory


PEAKS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}
"""Dense bf16 (V100, T4: fp16) FLOP/s by words of the device's name, as the makers state them; first match holds."""


def listed_peak(name: str) -> float | None:
    """Of a device by its name; None: not listed.

    >>> listed_peak("NVIDIA A100-SXM4-80GB"), listed_peak("NVIDIA L40")
    (312000000000000.0, None)
    """
    return next((peak for title, peak in PEAKS.items() if is_named(name, title)), None)


def is_named(name: str, title: str) -> bool:
    """Whether all words of a title stand in a device's name."""
    return all(re.search(rf"\b{word}\b", name) for word in title.split())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a device: from the table on GPUs (None where it isn't listed), a measured matmul on CPUs."""
    if device.type == "cuda":
        return listed_peak(torch.cuda.get_device_name(device))
    return _measured_matmul(dtype)


def _measured_matmul(dtype: torch.dtype, size: int = 1024, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of some square matmuls."""
    a = torch.ones(size, size, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
