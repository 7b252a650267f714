"""When to save: every so many steps or minutes, on request, and at the end; and what a checkpoint says of the run."""

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

import sslm
from sslm.config import CheckpointConfig
from sslm.data.module import DataModule
from sslm.models.masks import num_positions
from sslm.runs.checkpoints.best import metric_of
from sslm.runs.checkpoints.folder import newest_first, number_of
from sslm.runs.checkpoints.mirror import Mirror
from sslm.runs.checkpoints.retention import expired
from sslm.runs.checkpoints.saver import Saver
from sslm.runs.folder import RunFolder
from sslm.runs.trackers.identity import known_id
from sslm.system.heartbeats import beat
from sslm.system.terminal import say
from sslm.training.callbacks.resume import Resume
from sslm.training.module import Objective, StepOutputs

UPLOAD_SECONDS = 15.0
"""What a stopped job may still take to upload, before its time is up."""


class Checkpoint(Callback):
    """Save every N steps or minutes, on request, and at the end; `when` also tells what is kept in `folder`."""

    def __init__(self, folder: Path, when: CheckpointConfig, resume: Resume, total_steps: int) -> None:
        self.folder, self.when, self.resume, self.total_steps = folder, when, resume, total_steps
        self.saver: Saver | None = None
        """What writes; None before the first step."""
        self.mirror: Mirror | None = None
        """What uploads checkpoints, or None if nothing does."""
        self.tell_step: Callable[[int], None] | None = None
        """What is told the step of each checkpoint that is on the disk, or None if nobody waits for it."""
        self.dropped: set[int] = set()
        """Steps whose checkpoints were removed here, as no longer to be kept."""
        self.saved_at = time.monotonic()
        self._model_files: dict[str, bytes] | None = None

    @property
    def newest(self) -> Path | None:
        """The last checkpoint written, or else the one gone on from."""
        return (self.saver and self.saver.newest) or self.resume.start

    @property
    def saving_seconds(self) -> float | None:
        """The longest that saving has taken so far, or None if nothing was saved yet."""
        return None if self.saver is None else self.saver.longest_seconds

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        group = None
        if trainer.world_size > 1:  # the slowest disk may take its time: Timeouts is for training's own collectives
            group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self.saver = Saver(self.folder, group, self._when_written, pl_module.side_group)
        self.saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        assert self.saver is not None
        minutes = self.when.every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > minutes * 60:
            pl_module.save_requested = True
        pl_module.save_failed = self.saver.failure is not None
        pl_module.settles |= self._is_due(trainer.global_step + 1, False, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, *_: Any) -> None:
        if pl_module.anomaly_detector.must_rewind:
            return
        totals = outputs["totals"]
        if totals.save_failed:
            self.finish()
        is_last = totals.stop or trainer.should_stop or trainer.global_step >= self.total_steps
        is_due = self._is_due(trainer.global_step, totals.save, pl_module)
        if is_due and pl_module.anomaly_detector.streak:  # the weights may be what is wrong: later, then
            pl_module.save_requested, is_due = True, False
        if is_last or is_due:
            self.save(trainer, pl_module)
            if is_last:
                self.finish()

    def _is_due(self, step: int, was_asked: bool, pl_module: Objective) -> bool:
        every = self.when.every_steps
        may_be_best = self.when.keep_best is not None and pl_module.validated_at == step
        return was_asked or may_be_best or (every is not None and step % every == 0)

    def save(self, trainer: Trainer, pl_module: Objective) -> None:
        """Begin to save; `finish` waits for the end. All ranks call it together."""
        assert self.saver is not None
        self.saved_at = time.monotonic()
        if self._model_files is None:  # now: a tokenizer is not to be used by two threads
            self._model_files = model_files(pl_module, trainer.datamodule) if trainer.is_global_zero else {}
        tensors, state = pl_module.engine.states.tensors(), self._state(trainer, pl_module)
        self.saver.save(tensors, state, self._model_files, self.when.sync)

    def finish(self, timeout: float | None = None) -> None:
        """Wait until all is on the disk.

        Raises:
            OSError: if the last checkpoint could not be written.
            TimeoutError: if it takes longer than `timeout` seconds.
        """
        assert self.saver is not None
        self.saver.wait(timeout)

    def step(self, trainer: Trainer, pl_module: Objective) -> int:
        """The step at which the present state goes on: the last steps whose updates were withheld come again."""
        step = trainer.global_step
        return step if step >= self.total_steps else step - pl_module.anomaly_detector.streak

    def _state(self, trainer: Trainer, pl_module: Objective) -> dict[str, Any]:
        """What state.json holds."""
        data, step = trainer.datamodule, self.step(trainer, pl_module)
        state = {
            "sslm": sslm.__version__,
            "objective": type(pl_module).__name__,
            "step": step,
            "position": data.position(step),
            "amendments": data.amendments,
            "fingerprint": data.fingerprint(),
            "anomaly": pl_module.anomaly_detector.state(),
        }
        if pl_module.adapters is not None:
            state["adapters"] = pl_module.adapters._asdict()
        if pl_module.distillation is not None:
            state["teacher"] = pl_module.distillation.fingerprint
        if pl_module.pruning is not None:
            state["pruning"] = asdict(pl_module.pruning.pruning)
        if pl_module.is_pruning:
            state["is_pruning"] = True
        if not data.has_one_size:
            state |= {"batch_size": data.ramp.setting, "first_batch_size": data.first_batch_size}
        if (scaler := pl_module.engine.loss_scaler) is not None:
            state["loss_scale"] = {key: scaler.state_dict()[key] for key in ("scale", "_growth_tracker")}
        if pl_module.validated_at == step and trainer.is_global_zero:
            state["metrics"] = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            if self.when.keep_best is not None and self.when.best_metric not in state["metrics"]:
                say(
                    f"Warning: --checkpoint.best_metric {self.when.best_metric}: not measured, so none is kept as "
                    f"best; there are {', '.join(state['metrics'])}"
                )
        if pl_module.stopping is not None:
            state["stopping"] = pl_module.stopping.state()
        if (wandb_id := known_id(RunFolder(self.folder.parent))) is not None:
            state["wandb_id"] = wandb_id
        return state

    # -------------------------------------------------------------------------------------------- what is kept

    def _when_written(self, checkpoint: Path) -> list[Path]:
        """Upload a new checkpoint, and say which old ones may go. Called on rank 0, in the saver's thread."""
        if self.tell_step is not None:
            self.tell_step(number_of(checkpoint))
        there = {number_of(path): path for path in newest_first(self.folder)}
        metrics = {step: metric_of(path, self.when.best_metric) for step, path in there.items()}
        going = [there[step] for step in expired(metrics, number_of(checkpoint), self.when)]
        if self.mirror is not None:
            self.mirror.put(checkpoint)
            going = [path for path in going if path != self.mirror.busy]
        self.dropped |= {number_of(path) for path in going}
        return going

    def stays_there(self, step: int) -> bool:
        """Whether an uploaded checkpoint that is not here stays where it is: this machine may never have had it."""
        keeps_all = self.when.keep_last is None or self.when.keep_best is not None
        is_nth = self.when.keep_every_steps is not None and step % self.when.keep_every_steps == 0
        return step not in self.dropped and (keeps_all or is_nth)

    def on_train_end(self, trainer: Trainer, pl_module: Objective) -> None:
        self.finish()
        if self.mirror is not None and not self.mirror.wait(0):
            say(f"Uploading to {self.when.upload} …")
            # a SLURM job that stopped may end at any moment, and what it has lies on a disk that its next turn sees
            is_short_of_time = trainer.global_step < self.total_steps and "SLURM_JOB_ID" in os.environ
            end = time.monotonic() + (UPLOAD_SECONDS if is_short_of_time else float("inf"))
            while not self.mirror.wait(5) and time.monotonic() < end:
                beat("uploading")

    def teardown(self, trainer: Trainer, pl_module: Objective, stage: str) -> None:
        if self.mirror is not None:
            self.mirror.close()
            if self.mirror.failure is not None:
                say(f"Warning: {self.mirror.failure}; what is in {self.folder} is all there")


def model_files(pl_module: Objective, data: DataModule) -> dict[str, bytes]:
    """Config and tokenizer as transformers saves them, by path in a checkpoint.

    The tokenizer truncates to the model's positions, or if it has no limit, to the length that it was trained on.
    """
    model = pl_module.network.model
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if data.tokenizer is not None:
            tokenizer = copy.copy(data.tokenizer)
            tokenizer.model_max_length = num_positions(model.config) or data.num_positions
            tokenizer.save_pretrained(folder)
        files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
        return {f"model/{file.relative_to(folder)}": file.read_bytes() for file in files}
