"""GPUs: what torch sees and computes, and what their driver says of their health."""

import csv
import shutil
import subprocess
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import torch

from sslm.cli.doctor.finding import Finding
from sslm.parallel.planning.machines import ceiling_in_words
from sslm.system.errors import one_line
from sslm.system.terminal import bytes_in_words, plural

SMI_SECONDS = 20.0
MOST_HELD = 0.1
"""Largest fraction of a GPU's memory that is gone before a run begins: the driver's, a desktop's."""
HEALTH = (
    "index",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "clocks_throttle_reasons.active",
)
"""What nvidia-smi is asked for."""
THROTTLED = {0x8: "slowed down by the hardware", 0x20: "too hot", 0x40: "much too hot", 0x80: "short of power"}
"""Bits of clocks_throttle_reasons.active that no healthy GPU has set, whether it works or idles."""


def look() -> Iterator[Finding]:
    """Yield what torch sees, then what the driver says."""
    if not torch.cuda.is_available():
        yield none_seen()
        yield ceiling(torch.device("cpu"), torch.float32)
    else:
        yield Finding("GPUs", f"{plural(torch.cuda.device_count(), 'GPU')}")
        for number in range(torch.cuda.device_count()):
            yield one(number)
            yield product(f"cuda:{number}", f"GPU {number}, matmul")
            yield ceiling(torch.device("cuda", number), torch.bfloat16)
        yield from peers()
    yield from health()


def none_seen() -> Finding:
    """Say why there is none, if one is there that torch can't use."""
    if shutil.which("nvidia-smi") is None:
        return Finding("GPUs", "none; runs train on the CPU", "note")
    if torch.version.cuda is None:
        why, to_type = "this torch is built for CPUs alone", "pip install --force-reinstall torch, from its CUDA index"
    else:
        why = f"torch can't use it (built for CUDA {torch.version.cuda})"
        to_type = "a newer driver, or a torch for its CUDA; of a container, docker run --gpus all"
    return Finding("GPUs", f"none seen though nvidia-smi is there: {why}", "bad", "runs train on the CPU", to_type)


def one(number: int) -> Finding:
    """Describe a GPU, and what another program holds of it."""
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    found = (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{bytes_in_words(free)} of {bytes_in_words(total)} free"
    )
    if free < (1 - MOST_HELD) * total:
        return Finding(f"GPU {number}", found, "bad", "less memory: somebody else holds some", "nvidia-smi names them")
    return Finding(f"GPU {number}", found)


def product(device: str, name: str, size: int = 1024, terms: int = 256) -> Finding:
    """Multiply matrices of -1, 0 and 1 in bf16: no sum of 256 of them is rounded, so the product is exact."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1, 2, shape, generator=generator).float() for shape in ((size, terms), (terms, size)))
    try:
        there = [matrix.to(device, torch.bfloat16) for matrix in (a, b)]
        is_right = torch.equal((there[0] @ there[1]).float().cpu(), a @ b)
    except RuntimeError as error:
        return Finding(name, f"fails in bf16: {one_line(error)}", "bad", "every run", "a torch for this GPU and driver")
    if not is_right:
        return Finding(name, "wrong in bf16", "bad", "every run: this GPU miscalculates", "leave it out, report it")
    return Finding(name, "right in bf16")


def ceiling(device: torch.device, dtype: torch.dtype) -> Finding:
    """Tell the FLOP/s that no step can pass."""
    name = "CPU" if device.type == "cpu" else f"GPU {device.index}"
    return Finding(f"{name}, matmul's speed", ceiling_in_words(device, dtype))


def peers() -> Iterator[Finding]:
    """Tell which GPUs can't read each other's memory."""
    pairs = list(permutations(range(torch.cuda.device_count()), 2))
    apart = [f"{a}->{b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        hurts = "speed of sharded strategies: these pairs go through the host's memory"
        yield Finding("peer to peer", f"not between {', '.join(apart)}", "note", hurts)
    elif pairs:
        yield Finding("peer to peer", "between all GPUs")


class Health(NamedTuple):
    """What the driver says of a GPU, in HEALTH's order; a card without a figure says [N/A]."""

    number: str
    driver: str
    uncorrected: str
    clock: str
    most_clock: str
    celsius: str
    watts: str
    most_watts: str
    throttled: str


def health() -> Iterator[Finding]:
    """Ask nvidia-smi, if it is there."""
    if (program := shutil.which("nvidia-smi")) is None:
        return
    command = [program, f"--query-gpu={','.join(HEALTH)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stdout", None) or str(error)
        yield Finding("nvidia-smi", " ".join(words.split())[:200], "note", "the driver's health is not known")
        return
    for row in csv.reader(said.splitlines(), skipinitialspace=True):
        if len(row) == len(HEALTH):
            yield health_of(Health(*row))


def health_of(gpu: Health) -> Finding:
    """Judge one GPU by memory errors and by what holds its clock down."""
    name = f"GPU {gpu.number}, health"
    found = (
        f"driver {gpu.driver}, {gpu.uncorrected} uncorrected memory errors, {gpu.clock} of {gpu.most_clock} MHz, "
        f"{gpu.celsius} °C, {gpu.watts} of {gpu.most_watts} W"
    )
    if gpu.uncorrected.isdecimal() and int(gpu.uncorrected):
        return Finding(name, found, "bad", "every run: its memory has failed", "nvidia-smi -q -d ECC; leave it out")
    bits = int(gpu.throttled, 16) if gpu.throttled.startswith("0x") else 0
    if reasons := [words for bit, words in THROTTLED.items() if bits & bit]:
        return Finding(name, f"{found}; {', '.join(reasons)}", "bad", "speed", "nvidia-smi -q -d PERFORMANCE")
    return Finding(name, found)
