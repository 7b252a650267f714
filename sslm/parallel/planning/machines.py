"""What devices there are, or might be: their memory, what they compute, what they cost."""

import functools
import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import NamedTuple

import torch

from sslm.parallel.cores import multiplies_in_bf16
from sslm.parallel.float8 import supports_float8
from sslm.parallel.launch import Scaling
from sslm.parallel.planning.host_memory import free_memory
from sslm.system.errors import UserError, nearest
from sslm.system.terminal import GIB

PRICED = "2025"
"""Year of the prices below, those of smaller clouds on demand; large clouds ask two or three times as much."""

ADA: tuple[Scaling, ...] = ("tensor", "row")
BLACKWELL: tuple[Scaling, ...] = (*ADA, "block")
"""How these GPUs, and later ones, multiply in 8 bits."""


class Gpu(NamedTuple):
    """A kind of GPU."""

    title: str
    """Words that stand in the device's name."""
    peak: float
    """Dense bf16 (V100, T4: fp16) FLOP/s, as the maker states it."""
    memory: float | None = None
    """GiB, as the driver tells it."""
    price: float | None = None
    """US dollars an hour, typically (see PRICED)."""
    has_bf16: bool = True
    float8: tuple[Scaling, ...] = ()
    """How it multiplies in 8 bits."""
    link: float = 32e9
    """Bytes per second that a device sends to others of its node, as the maker states it: NVLink, or PCIe."""
    network: float | None = None
    """Bytes per second that a device sends to other nodes of NVIDIA's own systems (DGX); None if there are none."""


GPUS = {
    "b200": Gpu("B200", 2250e12, 178.4, 5.00, float8=BLACKWELL, link=900e9, network=50e9),
    "h200": Gpu("H200", 989.4e12, 139.8, 3.50, float8=ADA, link=450e9, network=50e9),
    "h100-nvl": Gpu("H100 NVL", 835e12, None, 2.75, float8=ADA, link=64e9),
    "h100-pcie": Gpu("H100 PCIe", 756e12, None, 2.75, float8=ADA, link=64e9),
    "h100": Gpu("H100", 989.4e12, 79.2, 2.75, float8=ADA, link=450e9, network=50e9),
    "a100-80": Gpu("A100 80GB", 312e12, 79.2, 1.80, link=300e9, network=25e9),
    "a100-40": Gpu("A100 40GB", 312e12, 39.4, 1.30, link=300e9, network=25e9),
    "a100": Gpu("A100", 312e12, link=300e9, network=25e9),
    "l40s": Gpu("L40S", 362e12, 44.4, 1.00, float8=ADA),
    "l4": Gpu("L4", 121e12, 22.0, 0.70, float8=ADA),
    "a10g": Gpu("A10G", 70e12, 22.0, 0.75),
    "a10": Gpu("A10", 125e12),
    "v100": Gpu("V100", 125e12, 15.8, 0.55, has_bf16=False, link=150e9),
    "t4": Gpu("T4", 65e12, 14.6, 0.40, has_bf16=False, link=16e9),
    "rtx4090": Gpu("RTX 4090", 165e12, 23.5, 0.50, float8=ADA),
    "rtx3090": Gpu("RTX 3090", 71e12, 23.6, 0.25),
}
"""By name; of a device's name the first whose words stand in it is taken."""
PLANNED_FOR = [name for name, gpu in GPUS.items() if gpu.memory is not None]
"""Names that `--plan_for` takes, beside cpu."""


@dataclass(frozen=True)
class Machine:
    """Devices to train on."""

    device: str
    """Kind of device, in words."""
    memory: float
    """Bytes of each device; of a CPU process its part of the free memory."""
    devices: int
    """Devices per node."""
    num_nodes: int = 1
    is_gpu: bool = True
    peak: float | None = None
    """FLOP/s of each device, or None if unknown."""
    price: float | None = None
    """US dollars per device and hour, or None if unknown."""
    precision: str = "bf16-mixed"
    """What `--precision auto` means here."""
    float8: tuple[Scaling, ...] = ()
    """How it multiplies in 8 bits."""
    has_compiler: bool = True
    """Whether torch.compile can make kernels there."""
    link: float | None = None
    """Bytes per second that a device sends to others of its node at most, or None if unknown."""
    network: float | None = None
    """Bytes per second that a device sends to other nodes at most, or None if unknown."""

    @property
    def world(self) -> int:
        """Devices on all nodes."""
        return self.devices * self.num_nodes


def named(text: str) -> Machine:
    """Make a machine of a name: h100, h100:8, h100:8x4 (four nodes of eight), cpu:2 (processes of this machine).

    Raises:
        UserError: the name is unknown, or what follows is no number of devices.
    """
    name, _, size = text.partition(":")
    numbers = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size or "1")
    if numbers is None:
        expected = f"expected {name}:8, or {name}:8x4 for 4 nodes of 8"
        raise UserError(f"--plan_for {text}: {size} is no number of devices; {expected}")
    devices, num_nodes = int(numbers[1]), int(numbers[2] or 1)
    if name == "cpu":
        return cpu(devices, num_nodes)
    if name not in PLANNED_FOR:
        close = nearest(name, [*PLANNED_FOR, "cpu"])
        known = f"{', '.join(PLANNED_FOR)} and cpu"
        raise UserError(f"--plan_for {text}: there is no device {name}{close}; known are {known}")
    gpu = GPUS[name]
    precision = "bf16-mixed" if gpu.has_bf16 else "16-mixed"
    memory = (gpu.memory or 0) * GIB
    machine = Machine(gpu.title, memory, devices, num_nodes, True, gpu.peak, gpu.price, precision, gpu.float8)
    return replace(machine, link=gpu.link, network=gpu.network)


def here(accelerator: str, devices: int, num_nodes: int = 1) -> Machine:
    """Describe this machine, or several nodes like it.

    Args:
        accelerator: cpu or gpu.
        devices: how many of each node are used.
    """
    if accelerator == "cpu":
        return cpu(devices, num_nodes)
    visible = range(min(devices, torch.cuda.device_count()))  # of srun's tasks, each may see its own GPU alone
    properties = [torch.cuda.get_device_properties(number) for number in visible]
    name, gpu = properties[0].name, listed(properties[0].name)
    peak, price = (gpu.peak, gpu.price) if gpu else (None, None)
    memory = min(device.total_memory for device in properties)
    precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    float8 = tuple(scaling for scaling in BLACKWELL if supports_float8(torch.device("cuda", 0), scaling))
    name = name.removeprefix("NVIDIA ")
    has_compiler = torch.cuda.get_device_capability() >= (7, 0) and has_triton_and_c()
    machine = Machine(name, memory, devices, num_nodes, True, peak, price, precision, float8, has_compiler)
    return machine if gpu is None else replace(machine, link=gpu.link, network=gpu.network)


def has_triton_and_c() -> bool:
    """Whether there is Triton, which makes kernels, and the C compiler that it makes what calls them with."""
    c = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    return find_spec("triton") is not None and c is not None


def cpu(processes: int, num_nodes: int = 1) -> Machine:
    """Describe CPU processes of this machine as devices."""
    precision = "bf16-mixed" if multiplies_in_bf16() else "32"
    return Machine("CPU process", free_memory(processes), processes, num_nodes, is_gpu=False, precision=precision)


def listed(name: str) -> Gpu | None:
    """Find a device in the table by its name; None if it is not listed.

    >>> listed("NVIDIA A100-SXM4-80GB").price, listed("NVIDIA L40")
    (1.8, None)
    """
    return next((gpu for gpu in GPUS.values() if all(re.search(rf"\b{w}\b", name) for w in gpu.title.split())), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of a device: of a GPU as listed, or None if it isn't; of a CPU by measuring a matmul."""
    if device.type == "cuda":
        gpu = listed(torch.cuda.get_device_name(device))
        return gpu and gpu.peak
    return measured_matmul(device, dtype)


SIDES = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices to multiply, by kind of device."""


@functools.cache
def measured_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Return the FLOP/s of the fastest of some square matmuls, measured once in a process: what no step can pass."""
    size = SIDES[device.type]
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def ceiling_in_words(device: torch.device, dtype: torch.dtype) -> str:
    """Say what a matmul reaches on a device, beside its sheet."""
    measured, side = measured_matmul(device, dtype), SIDES[device.type]
    said = f"{rate_in_words(measured)} in {str(dtype).removeprefix('torch.')}, a matmul of {side} x {side}"
    if device.type == "cpu" or (sheet := peak_flops(device, dtype)) is None:
        return said
    return f"{said}: {measured / sheet:.0%} of its sheet's {rate_in_words(sheet)}"


def rate_in_words(flops: float) -> str:
    """Write FLOP/s as their unit is written.

    >>> rate_in_words(989.4e12), rate_in_words(33.1e9)
    ('989 TFLOP/s', '33.1 GFLOP/s')
    """
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"
