"""Stopping with everything saved: on a signal to any rank, by --stop_after, or before a SLURM job's time ends.

A signal handler only sets a flag; the flag rides in the step's collective, so all ranks stop at the same step.
Lightning's own handler is replaced (see docs/lessons.md, 'SIGTERM hangs or loses work'). Before the first step there is
nothing to save: signals end the process at once (signals.py).
"""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer

from sslm.config import parse_stop_after
from sslm.system.signals import Handlers, give_back, take_signals
from sslm.training.lightning import skip_next_validation, stop_broadcasting_sigterm
from sslm.training.module import Objective, StepOutputs

RESERVE_SECONDS = 30.0
"""Kept free before a job's end beside the time that saving takes, to leave and because clocks differ."""


class Preemption(Callback):
    """Ends the run at a step boundary when it is asked to.

    Args:
        stop_after: a time (`3h50m`), a number of this command's steps (`200steps`), or None for neither.
        started_at: when the time began to run, by time.monotonic.
        saving_seconds: gives the longest that saving has taken so far, or None if nothing was saved yet.
    """

    def __init__(
        self, stop_after: str | None, started_at: float, saving_seconds: Callable[[], float | None] = lambda: None
    ) -> None:
        seconds, self.steps = parse_stop_after(stop_after) if stop_after else (None, None)
        self.saving_seconds = saving_seconds
        self.ends = {} if seconds is None else {"--stop_after": started_at + seconds}
        """What ends the run -> when all must be saved, by time.monotonic."""
        if (end := seconds_to_job_end()) is not None:
            self.ends["the job's time limit"] = time.monotonic() + end - RESERVE_SECONDS
        self.first_step = 0
        self.longest_step = 0.0
        """Seconds from one step's beginning to the next one's, validation included."""
        self._step_began: float | None = None
        self._handlers_before: Handlers = {}
        self.reason = ""
        self.stopped = False
        """Whether the run ended here, before its end."""

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self.first_step = trainer.global_step
        stop_broadcasting_sigterm(trainer)

        def handle(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and pl_module.stop_requested:
                raise KeyboardInterrupt
            self.reason = signal.Signals(number).name
            pl_module.stop_requested = True

        self._handlers_before = take_signals(handle)
        if trainer.received_sigterm:  # while Lightning's handler was there
            handle(signal.SIGTERM, None)

    def teardown(self, trainer: Trainer, pl_module: Objective, stage: str) -> None:
        give_back(self._handlers_before)
        self._handlers_before = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        now = time.monotonic()
        if self._step_began is not None:
            self.longest_step = max(self.longest_step, now - self._step_began)
        self._step_began = now
        if self.steps is not None and trainer.global_step + 1 - self.first_step >= self.steps:
            self._stop(pl_module, "--stop_after")
        for what, end in self.ends.items():
            if now + self.longest_step + 1.5 * (self.saving_seconds() or 0.0) > end:
                self._stop(pl_module, what)

    def look(self, pl_module: Objective) -> bool:
        """Whether this process is to stop, looked at within something long that is no step."""
        for what, end in self.ends.items():
            if time.monotonic() + 1.5 * (self.saving_seconds() or 0.0) > end:
                self._stop(pl_module, what)
        return pl_module.stop_requested

    def leave_out(self, seconds: float) -> None:
        """Count time as no part of the present step: what took it can be broken off."""
        if self._step_began is not None:
            self._step_began += seconds

    def _stop(self, pl_module: Objective, why: str) -> None:
        self.reason = self.reason or why
        pl_module.stop_requested = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, *_: Any) -> None:
        is_before_end = trainer.global_step < trainer.max_steps and not pl_module.anomaly_detector.must_rewind
        if outputs["totals"].stop and is_before_end:
            self.stopped = trainer.should_stop = True
            self.reason = self.reason or "a signal to another process"
            skip_next_validation(trainer)


def seconds_to_job_end() -> float | None:
    """Seconds until SLURM ends this job, or None if this is no job or has no end."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return int(end) - time.time() if end.isdecimal() else None
