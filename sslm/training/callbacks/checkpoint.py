"""When to save, and how a run goes on: weights, optimizer, counters and the data's position are set before the first step."""

import os
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.distributed.distributed_c10d import _get_default_store

import sslm
from sslm.config import CheckpointConfig
from sslm.data.module import DataModule
from sslm.models.weights import local_part
from sslm.runs import checkpoints
from sslm.runs.checkpoints.folder import number_of
from sslm.runs.checkpoints.retention import expired
from sslm.runs.folder import RunFolder
from sslm.system.collectives import gather_json
from sslm.system.errors import RunFailed
from sslm.system.heartbeats import beat
from sslm.system.terminal import say
from sslm.training.lightning import set_step
from sslm.training.module import Objective

if TYPE_CHECKING:
    from sslm.runs.checkpoints.mirror import Mirror

RESCUE_SECONDS = 10.0
"""How long a rank that met an error waits for the others to have met one too, so that what they have can be saved."""

UPLOAD_SECONDS = 15.0
"""What a stopped job may still take to upload, before its time is up."""


class Checkpoint(Callback):
    """Save every N steps or minutes, on request, and at the end; resume at the start.

    Args:
        folder: where checkpoints are kept.
        resume_from: checkpoint to go on from; None: begin.
        total_steps: the run's last step.
    """

    saver: checkpoints.Saver

    def __init__(self, folder: Path, when: CheckpointConfig, resume_from: Path | None, total_steps: int) -> None:
        self.folder, self.when, self.resume_from, self.total_steps = folder, when, resume_from, total_steps
        self.mirror: Mirror | None = None
        """Brings them elsewhere; None: nothing does."""
        self.dropped: set[int] = set()
        """Steps whose checkpoints were removed here, as no longer to be kept."""
        self.newest = resume_from
        """The last checkpoint written, or else the one gone on from."""
        self.saved_at = time.monotonic()
        self._model_files: dict[str, bytes] | None = None

    # -------------------------------------------------------------------------------------------- the start

    def on_fit_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self._agree_where_to_start(pl_module)
        if self.resume_from is not None:
            self.load(trainer, pl_module, self.resume_from)

    def _agree_where_to_start(self, pl_module: Objective) -> None:
        """What the first rank has verified holds for all; others may have found a newer one that is damaged."""
        starts = gather_json(None if self.resume_from is None else str(self.resume_from), pl_module.side_group)
        if any((start is None) != (starts[0] is None) for start in starts):
            raise RunFailed(
                f"some ranks found checkpoints in {self.folder}, others did not; run the same command again"
            )
        self.newest = self.resume_from = None if starts[0] is None else Path(starts[0])

    def load(self, trainer: Trainer, pl_module: Objective, checkpoint: Path) -> None:
        """Go on from a checkpoint; all ranks call it together."""
        state = checkpoints.read_state(checkpoint)
        states_of(trainer, pl_module).load(checkpoint)
        if (scaler := loss_scaler(trainer)) is not None and "loss_scale" in state:
            scaler.load_state_dict(scaler.state_dict() | state["loss_scale"])
        pl_module.anomaly_detector.load(state.get("anomaly", {}))
        trainer.datamodule.restore(state["step"], state["amendments"])
        set_step(trainer, state["step"])

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        group = None
        if trainer.world_size > 1:  # the slowest disk may take its time: Timeouts is for training's own collectives
            group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self.saver = checkpoints.Saver(self.folder, group, self._when_written, pl_module.side_group)
        self.saved_at = time.monotonic()

    # -------------------------------------------------------------------------------------------- while it runs

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, batch: Any, batch_idx: int) -> None:
        minutes = self.when.every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > minutes * 60:
            pl_module.save_requested = True
        pl_module.save_failed = self.saver.has_failed

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Objective, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if pl_module.anomaly_detector.must_rewind:
            return
        if outputs["save_failed"]:
            self.saver.wait()
        is_last = outputs["stop"] or trainer.global_step >= self.total_steps
        is_due = self._is_due(trainer.global_step, outputs["save"], pl_module)
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
        """Begin to; `finish` waits for the end."""
        self.saved_at = time.monotonic()
        if self._model_files is None:  # now: a tokenizer is not to be used by two threads
            self._model_files = model_files(pl_module, trainer.datamodule) if trainer.is_global_zero else {}
        tensors, state = states_of(trainer, pl_module).tensors(), self._state(trainer, pl_module)
        self.saver.save(tensors, state, self._model_files, self.when.sync)

    def _state(self, trainer: Trainer, pl_module: Objective) -> dict[str, Any]:
        data, step = trainer.datamodule, self._step(trainer, pl_module)
        state = {
            "sslm": sslm.__version__,
            "objective": type(pl_module).__name__,
            "step": step,
            "position": step * data.batch_size,
            "amendments": data.amendments,
            "fingerprint": data.fingerprint(),
            "anomaly": pl_module.anomaly_detector.state(),
        }
        if (scaler := loss_scaler(trainer)) is not None:
            state["loss_scale"] = {key: scaler.state_dict()[key] for key in ("scale", "_growth_tracker")}
        if pl_module.validated_at == step and trainer.is_global_zero:
            state["metrics"] = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            if self.when.keep_best is not None and self.when.best_metric not in state["metrics"]:
                say(
                    f"Warning: --checkpoint.best_metric {self.when.best_metric}: not measured, so none is kept as best; there are "
                    f"{', '.join(state['metrics'])}"
                )
        if (wandb_id := RunFolder(self.folder.parent).known_wandb_id()) is not None:
            state["wandb_id"] = wandb_id
        return state

    def _step(self, trainer: Trainer, pl_module: Objective) -> int:
        """Where the state as it is now goes on: at the first of the last steps whose updates were withheld, which come again then."""
        step = trainer.global_step
        return step if step >= self.total_steps else step - pl_module.anomaly_detector.streak

    def _when_written(self, checkpoint: Path) -> list[Path]:
        """Bring it elsewhere; those that are not to be kept. Called on rank 0, in the saver's thread."""
        there = {number_of(path): path for path in checkpoints.found(self.folder)}
        metrics = {step: metric_of(path, self.when.best_metric) for step, path in there.items()}
        going = [there[step] for step in expired(metrics, number_of(checkpoint), self.when)]
        if self.mirror is not None:
            self.mirror.put(checkpoint)
            going = [path for path in going if path != self.mirror.busy()]
        self.dropped |= {number_of(path) for path in going}
        return going

    def stays_there(self, step: int) -> bool:
        """Whether an uploaded checkpoint that is not here stays where it is: this machine may never have had it."""
        keeps_all = self.when.keep_last is None or self.when.keep_best is not None
        is_nth = self.when.keep_every_steps is not None and step % self.when.keep_every_steps == 0
        return step not in self.dropped and (keeps_all or is_nth)

    def saving_seconds(self) -> float | None:
        """That saving has taken so far, at most; None: nothing was saved yet."""
        return self.saver.longest_seconds if hasattr(self, "saver") else None

    def finish(self) -> None:
        """Wait until all is on the disk."""
        self.saver.wait()
        self.newest = self.saver.newest or self.newest

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

    # -------------------------------------------------------------------------------------------- going back, errors

    def rewind(self, trainer: Trainer, pl_module: Objective, at_most: int) -> Path | None:
        """Go back to the newest good checkpoint of at most this step; None: there is none. Newer ones are removed: they belong to a
        course that the run does not take. All ranks call it together."""
        self.finish()
        chosen: Path | None = None
        if trainer.is_global_zero:
            for newer in [path for path in checkpoints.found(self.folder) if number_of(path) > at_most]:
                checkpoints.remove(newer)
            chosen = checkpoints.newest_good(self.folder, say)
        (start, *_) = gather_json(None if chosen is None else str(chosen), pl_module.side_group)
        if start is None:
            return None
        self.newest = Path(start)
        self.load(trainer, pl_module, self.newest)
        return self.newest

    def on_exception(self, trainer: Trainer, pl_module: Objective, exception: BaseException) -> None:
        """Save what has been trained since the last checkpoint, where all ranks end between two updates and the weights are sound."""
        if not hasattr(self, "saver") or not isinstance(exception, Exception) or isinstance(exception, RunFailed):
            return
        with suppress(Exception):  # the error itself is what is to be told
            self.saver.wait(RESCUE_SECONDS)
            self.newest = self.saver.newest or self.newest
            if self._step(trainer, pl_module) > checkpoints.step_of(self.newest) and self._all_are_sound(pl_module):
                self.save(trainer, pl_module)
                self.finish()
                say(f"Saved at step {checkpoints.step_of(self.newest)}, before this error")

    def _all_are_sound(self, pl_module: Objective) -> bool:
        """Whether all ranks come here in time, each with sound weights. They count themselves in torch's store: a collective would
        wait for a rank that is still in training."""
        weights = [local_part(parameter) for parameter in pl_module.network.parameters()]
        is_sound = not pl_module.is_updating and all(bool(weight.isfinite().all()) for weight in weights)
        if self.saver.group is None or not is_sound:
            return is_sound
        store, end = _get_default_store(), time.monotonic() + RESCUE_SECONDS
        store.add("sslm/sound", 1)
        while (is_late := store.add("sslm/sound", 0) < dist.get_world_size()) and time.monotonic() < end:
            time.sleep(0.1)
        return not is_late


def states_of(trainer: Trainer, pl_module: Objective) -> Any:
    """What gives and takes the run's tensors: the strategy's own way, where it has one (DeepSpeed)."""
    own = getattr(trainer.strategy, "states", None)
    if own is not None:
        return own(pl_module.network)
    average = pl_module.average
    return checkpoints.States(pl_module.network, trainer.optimizers[0], None if average is None else average.tensors)


def model_files(pl_module: Objective, data: DataModule) -> dict[str, bytes]:
    """Config and tokenizer, as transformers saves them: path in a checkpoint -> contents."""
    model = pl_module.network.model
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if data.tokenizer is not None:
            data.tokenizer.save_pretrained(folder)
        files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
        return {f"model/{file.relative_to(folder)}": file.read_bytes() for file in files}


def metric_of(checkpoint: Path, name: str) -> float | None:
    """What a metric was when the checkpoint was made; None: it wasn't measured there."""
    try:
        value = checkpoints.read_state(checkpoint)["metrics"][name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, float) and value == value else None


def loss_scaler(trainer: Trainer) -> Any:
    """What scales the loss in fp16 (torch's GradScaler, or DeepSpeed's in its clothes); None: nothing does."""
    own = getattr(trainer.strategy, "loss_scaler", None)
    return getattr(trainer.precision_plugin, "scaler", None) if own is None else own()
