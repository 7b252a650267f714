"""Stopping on request: a signal to any one rank, or --stop_after, ends the run at a step boundary with everything saved.

A signal handler only sets a flag; the flag rides in the step's collective, so all ranks stop at the same step. Lightning's
own handler loses work or hangs (its issue 20825): it is replaced, and its broadcast per batch switched off.
"""

import signal
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer

from sslm.config import parse_stop_after
from sslm.objectives.base import Objective

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Preemption(Callback):
    """Args:
    stop_after: a time (`3h50m`) or a number of this command's steps (`200steps`); None: neither.
    started_at: by time.monotonic, when the time began to run.
    """

    def __init__(self, stop_after: str | None, started_at: float) -> None:
        self.seconds, self.steps = parse_stop_after(stop_after) if stop_after else (None, None)
        self.started_at = started_at
        self.first_step = 0
        self._handlers: dict[int, Any] = {}
        self.reason = ""
        self.stopped = False
        """Whether the run ended here, before its end."""

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self.first_step = trainer.global_step
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

        def handle(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and pl_module.stop_requested:
                raise KeyboardInterrupt
            self.reason = signal.Signals(number).name
            pl_module.stop_requested = True

        self._handlers = {number: signal.signal(number, handle) for number in SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: Objective, stage: str) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)
        self._handlers = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, batch: Any, batch_idx: int) -> None:
        time_is_up = self.seconds is not None and time.monotonic() - self.started_at > self.seconds
        last_step = self.steps is not None and trainer.global_step + 1 - self.first_step >= self.steps
        if time_is_up or last_step:
            self.reason = "--stop_after"
            pl_module.stop_requested = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Objective, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if outputs["stop"] and trainer.global_step < trainer.max_steps:
            self.stopped = trainer.should_stop = True
            self.reason = self.reason or "a signal to another process"
            trainer.fit_loop.epoch_loop._skip_next_val = True  # Lightning would validate; Validation decides when
