"""What runs in the forked processes: `sslm train`, with an eye on what the host and the device do."""

import ctypes
import json
import os
import sys
import traceback
from collections import Counter
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import INITIAL_LOSS_SCALE
from deepspeed.runtime.precision_config import DeepSpeedFP16Config

from benchmarks.watch import Matmuls, Peak, Plan, Steps, trainer_callback, without_contents
from sslm.train import main


def train(arguments: list[str]) -> int:
    return main(arguments)


def train_as_task(arguments: list[str]) -> int:
    """Train as a task of srun --gpus-per-task=1, which sees one GPU."""
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    task = {"PROCID": rank, "LOCALID": rank, "NODEID": "0", "NTASKS": world, "NNODES": "1", "GPUS_ON_NODE": world}
    job = {"JOB_ID": "7", "JOB_NAME": "sslm", "STEP_ID": "0", "NODELIST": "node1"}
    os.environ |= {f"SLURM_{name}": value for name, value in (task | job).items()} | {"FAKE_GPUS": "1"}
    return main(arguments)


def train_with_dtypes(out: str, arguments: list[str]) -> int:
    """Train, and write down which dtypes the matmuls of the blocks' linear layers see in training: {dtype: count}."""
    seen = Matmuls()
    with seen:
        code = main(arguments)
    write(out, seen.dtypes)
    return code


def train_with_waits(out: str, arguments: list[str]) -> int:
    """Train, and write down where the host waited for the device in steps that are watched (`Steps`).

    The file has {"event < frame < frame": count}; a frame is "file.py:line".
    """
    waits: Counter[str] = Counter()
    steps = Steps()

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_size_t)
    def note(event: bytes, size: int) -> None:
        if steps.are_watched:
            waits[" < ".join([event.decode(), *frames()])] += 1

    ctypes.CDLL(None).fakecuda_set_hook(note)
    with trainer_callback(steps):
        code = main(arguments)
    ctypes.CDLL(None).fakecuda_set_hook(None)
    write(out, waits)
    return code


def frames(most: int = 4) -> list[str]:
    """Where this thread is: the innermost frames of packages, from inside to outside, and two of sslm's."""
    found = []
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        file = frame.f_code.co_filename
        if "site-packages/" in file or "/sslm/" in file:
            short = file.partition("site-packages/")[2] or "sslm/" + file.rpartition("/sslm/")[2]
            found.append(f"{short}:{line}")
    ours = [place for place in found if place.startswith("sslm/")][:2]
    return [*found[:most], *(place for place in ours if place not in found[:most])]


def train_with_peak(out: str, arguments: list[str]) -> int:
    """Train two steps of a model whose weights are left as they are, and end.

    Writes down the bytes that were planned for a device, by part, and the allocator's peak in the second step.
    """
    without_contents()
    plan = Plan()

    def leave(peak: int) -> None:
        write(out, {"planned": plan.parts, "peak": peak})
        os._exit(0)  # nothing of that size is saved

    with plan.noting(), trainer_callback(Peak(leave)):
        return main(arguments)


def train_with_loss_scale(scale: float, arguments: list[str]) -> int:
    """Train with another first loss scale, of torch and of DeepSpeed, than they have by default."""
    torch.amp.GradScaler.__init__ = partialmethod(torch.amp.GradScaler.__init__, init_scale=scale)
    DeepSpeedFP16Config.initial_dynamic_scale = lambda self: scale
    arguments_of = DeepSpeedFP16Config.dynamic_loss_scale_args
    DeepSpeedFP16Config.dynamic_loss_scale_args = lambda self: (arguments_of(self) or {}) | {INITIAL_LOSS_SCALE: scale}
    return main(arguments)


def write(out: str, content: Any) -> None:
    Path(f"{out}.{os.environ.get('RANK', '0')}").write_text(json.dumps(content))
