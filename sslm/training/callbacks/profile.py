"""Profiles some steps on rank 0 (--profile 10:13): a trace, a memory snapshot, and in words where the time went."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.profiler import ProfilerActivity, profile, record_function

from sslm.config import Steps, parse_profile
from sslm.parallel.planning.machines import ceiling_in_words
from sslm.system.errors import UserError
from sslm.system.files import write_atomically
from sslm.system.terminal import say
from sslm.training.module import Objective
from sslm.training.profile_report import BETWEEN, STEP, in_words, shares

MOST_ALLOCATIONS = 100_000
"""Entries of the memory snapshot's history."""


def profiler_of(text: str | None, folder: Path, start: int, end: int) -> "list[Profile]":
    """Make the callback, if one is wanted, of a run that goes on from step `start` to step `end`.

    Raises:
        UserError: the run has fewer steps.
    """
    if text is None:
        return []
    first, last = parse_profile(text)
    if last > end:
        raise UserError(f"--profile {text}: the run ends with step {end}; give steps up to that, or more --max_steps")
    if last <= start:
        say(f"Warning: --profile {text}: the run goes on from step {start}, so nothing is profiled")
        return []
    return [Profile(folder, Steps(max(first, start + 1), last))]


class Profile(Callback):
    """Writes trace.json.gz, report.txt and, of a GPU, memory.pickle; it is to be the first callback.

    Args:
        folder: where the files go.
        steps: the first and the last step, counted from 1.
    """

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.is_done, self.waited, self.num_steps = False, 0.0, 0
        self._profiler: profile | None = None
        self._mark = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self._perhaps_start(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        if self._profiler is not None:
            self.waited += time.perf_counter() - pl_module.batch_ended_at
            self._enter(STEP)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        if self._profiler is None:
            self._perhaps_start(trainer)
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # else a step would end before its kernels
        self._enter(BETWEEN)
        self.num_steps += 1
        if trainer.global_step >= self.steps.last:
            began = time.perf_counter()
            self._finish(trainer)
            pl_module.batch_ended_at += time.perf_counter() - began  # no step's time

    def on_train_end(self, trainer: Trainer, pl_module: Objective) -> None:
        """Write what there is of a run that ended before."""
        self._finish(trainer)

    def _perhaps_start(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self.is_done and trainer.global_step == self.steps.first - 1:
            os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler says each start and stop on stderr
            activities = [ProfilerActivity.CPU]
            if trainer.strategy.root_device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=MOST_ALLOCATIONS)
            self._profiler = profile(activities=activities, record_shapes=True, with_flops=True, acc_events=True)
            self._profiler.start()
            self._enter(BETWEEN)

    def _enter(self, mark: str) -> None:
        self._mark.close()
        self._mark.enter_context(record_function(mark))

    def _finish(self, trainer: Trainer) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        self.is_done = True
        self._mark.close()
        profiler.stop()
        if self.num_steps:
            self._write(profiler, trainer)

    def _write(self, profiler: profile, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        device = trainer.strategy.root_device
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        memory = "there is no memory snapshot of a CPU"
        if device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
            memory = "memory.pickle opens at pytorch.org/memory_viz"
        in_bf16 = device.type == "cuda" or "bf16" in str(trainer.precision)
        ceiling = ceiling_in_words(device, torch.bfloat16 if in_bf16 else torch.float32)
        steps = range(self.steps.first, self.steps.first + self.num_steps)
        events = list(profiler.events() or [])  # type: ignore[no-untyped-call]
        report = in_words(shares(events, self.waited), steps, ceiling)
        write_atomically(self.folder / "report.txt", report + "\n")
        say(report)
        say(f"Profile: {self.folder}/trace.json.gz opens at ui.perfetto.dev; {memory}", to_copy=True)
