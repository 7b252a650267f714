"""Measure the model under training by tasks and on texts, every so many steps and at the end.

Rank 0 measures a copy of the model, as `sslm evaluate` would measure the step's checkpoint, while the others wait: the
figures are the same on any number of devices, and nothing of the run is touched. An evaluation ends before the
checkpoint of its step is written; if a signal or --stop_after breaks it off, that step is saved, and evaluated when the
run goes on.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from sslm.models.adapters import Adapters
from sslm.system.collectives import gather_json
from sslm.system.heartbeats import beat, this_process
from sslm.system.terminal import say
from sslm.training.callbacks.checkpoint import model_files
from sslm.training.callbacks.monitor import Monitor
from sslm.training.callbacks.preemption import Preemption
from sslm.training.module import Objective, StepOutputs

SECONDS_BETWEEN_LOOKS = 0.05


class Copy(NamedTuple):
    """What is measured."""

    folder: Path
    """Of its config and its tokenizer."""
    weights: dict[str, Tensor]
    """Whole, in the host's memory."""
    step: int
    device: torch.device
    adapters: Adapters | None
    """Those that are among the weights."""


Measure = Callable[[Copy, Callable[[], None]], dict[str, float | None]]
"""(what is measured, what to call before each forward pass) -> figures by their names in metrics.jsonl."""


class BrokenOff(BaseException):
    """The run is to stop. No library that takes errors for answers may catch it."""


class Evaluation(Callback):
    """Measures every `every` steps (None: at the end alone) and after the last one; never without `measure`."""

    def __init__(
        self, every: int | None, total_steps: int, measure: Measure | None, monitor: Monitor, preemption: Preemption
    ) -> None:
        self.every, self.total_steps, self.measure = every, total_steps, measure
        self.monitor, self.preemption = monitor, preemption
        self.group: dist.ProcessGroup | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        """Make up for an evaluation that was broken off."""
        if (
            trainer.world_size > 1 and self.measure is not None
        ):  # the others wait as long as it takes; the watchdog sees whether rank 0 goes on
            self.group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        step = trainer.global_step
        if step and self._is_due(trainer):
            rows = self.monitor.run.rows() if trainer.is_global_zero else []
            is_there = any(row["step"] == step and any(key.startswith("eval/") for key in row) for row in rows)
            if not gather_json(is_there, self.group)[0]:
                self.evaluate(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        pl_module.settles |= self._is_due(trainer, 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, *_: Any) -> None:
        is_left_for_later = outputs["totals"].stop and trainer.global_step < self.total_steps
        if pl_module.anomaly_detector.must_rewind or is_left_for_later or not self._is_due(trainer):
            return
        if not self.evaluate(trainer, pl_module):
            outputs["totals"] = outputs["totals"]._replace(stop=True)  # with this step, on all ranks

    def _is_due(self, trainer: Trainer, steps_ahead: int = 0) -> bool:
        if self.measure is None:
            return False
        step = trainer.global_step + steps_ahead
        is_end = step >= self.total_steps or (trainer.should_stop and not steps_ahead)
        return is_end or (self.every is not None and step % self.every == 0)

    def evaluate(self, trainer: Trainer, pl_module: Objective) -> bool:
        """Measure the model as it is; all ranks call it together. Whether it came to an end."""
        this_process.turn("evaluating")
        start, is_first = time.monotonic(), trainer.is_global_zero
        weights = pl_module.engine.states.weights(keeps=is_first)
        is_done = self._measure(trainer, pl_module, weights) if is_first else True
        is_done = self._first_ranks(is_done)
        self.preemption.leave_out(time.monotonic() - start)
        this_process.turn("ending the step")
        return is_done

    def _measure(self, trainer: Trainer, pl_module: Objective, weights: dict[str, Tensor]) -> bool:
        def before_each_pass() -> None:
            beat("evaluating")
            if self.preemption.look(pl_module):
                raise BrokenOff

        assert self.measure is not None
        with tempfile.TemporaryDirectory() as folder, _random_streams_kept(pl_module.device):
            for name, content in model_files(pl_module, trainer.datamodule).items():
                (file := Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            copy = Copy(Path(folder) / "model", weights, trainer.global_step, pl_module.device, pl_module.adapters)
            try:
                self.monitor.write_values(trainer, self.measure(copy, before_each_pass))
            except BrokenOff:
                is_last = trainer.global_step >= self.total_steps
                later = f"sslm evaluate {self.monitor.run.path} does it later" if is_last else "it comes on resuming"
                say(f"step {trainer.global_step:>6}  evaluation broken off; {later}")
                return False
        return True

    def _first_ranks(self, is_done: bool) -> bool:
        """Rank 0's answer, when it has one; meanwhile this process hears signals."""
        if self.group is not None:
            work: Any = dist.barrier(group=self.group, async_op=True)
            while not work.is_completed():
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return bool(gather_json(is_done, self.group)[0])


@contextmanager
def _random_streams_kept(device: torch.device) -> Iterator[None]:
    """Leave all streams of random numbers as they are: the harness seeds every one of them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 the global one is what it seeds
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
