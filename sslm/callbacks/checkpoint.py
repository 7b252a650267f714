"""When to save, and how a run goes on: weights, optimizer, counters and the data's position are set before the first step."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

import sslm
from sslm import checkpoints
from sslm.config import CheckpointConfig
from sslm.data.module import DataModule
from sslm.errors import UserError
from sslm.objectives.base import Objective


class Checkpoint(Callback):
    """Save every N steps or minutes, on request, and at the end; resume at the start.

    Args:
        folder: where checkpoints are kept.
        resume_from: checkpoint to go on from; None: begin.
        total_steps: the run's last step.
    """

    def __init__(self, folder: Path, when: CheckpointConfig, resume_from: Path | None, total_steps: int) -> None:
        self.folder, self.when, self.resume_from, self.total_steps = folder, when, resume_from, total_steps
        self.newest = resume_from
        """The last checkpoint written, or else the one gone on from."""
        self.saved_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self._check_agreement(pl_module)
        if self.resume_from is None:
            return
        state = checkpoints.read_state(self.resume_from)
        states_of(trainer, pl_module).load(self.resume_from)
        if (scaler := loss_scaler(trainer)) is not None and "loss_scale" in state:
            scaler.load_state_dict(scaler.state_dict() | state["loss_scale"])
        trainer.datamodule.restore(state["step"], state["amendments"])
        _set_step(trainer, state["step"])

    def _check_agreement(self, pl_module: Objective) -> None:
        """All ranks begin at the same step, or none does: a shared file system may show them different folders."""
        if pl_module.side_group is not None:
            step = checkpoints.step_of(self.resume_from)
            steps = torch.tensor([step, -step])
            dist.all_reduce(steps, op=dist.ReduceOp.MAX, group=pl_module.side_group)
            if steps[0] != -steps[1]:
                raise RuntimeError(
                    f"ranks found different checkpoints in {self.folder} (steps {-steps[1]} to {steps[0]}); run again"
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, batch: Any, batch_idx: int) -> None:
        minutes = self.when.every_minutes
        if minutes is not None and time.monotonic() - self.saved_at > minutes * 60:
            pl_module.save_requested = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Objective, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.when.every_steps
        if outputs["stop"] or outputs["save"] or step >= self.total_steps or (every is not None and step % every == 0):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: Objective) -> None:
        data = trainer.datamodule
        step = trainer.global_step
        state = {
            "sslm": sslm.__version__, "objective": type(pl_module).__name__, "step": step,
            "position": step * data.batch_size, "amendments": data.amendments, "fingerprint": data.fingerprint(),
        }  # fmt: skip

        if (scaler := loss_scaler(trainer)) is not None:
            state["loss_scale"] = {key: scaler.state_dict()[key] for key in ("scale", "_growth_tracker")}

        def save_model_files(folder: Path) -> None:
            model = pl_module.network.model
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            if data.tokenizer is not None:
                data.tokenizer.save_pretrained(folder)

        self.newest = checkpoints.save(
            self.folder, states_of(trainer, pl_module).tensors(), state, save_model_files, self.when.keep_last,
            pl_module.side_group,
        )  # fmt: skip
        self.saved_at = time.monotonic()


def states_of(trainer: Trainer, pl_module: Objective) -> Any:
    """What gives and takes the run's tensors: the strategy's own way, where it has one (DeepSpeed)."""
    own = getattr(trainer.strategy, "states", None)
    return checkpoints.States(pl_module.network, trainer.optimizers[0]) if own is None else own(pl_module.network)


def loss_scaler(trainer: Trainer) -> Any:
    """What scales the loss in fp16 (torch's GradScaler, or DeepSpeed's in its clothes); None: nothing does."""
    own = getattr(trainer.strategy, "loss_scaler", None)
    return getattr(trainer.precision_plugin, "scaler", None) if own is None else own()


def check_data(checkpoint: Path, data: DataModule) -> None:
    """Refuse to go on with other data.

    Raises:
        UserError: what differs.
    """
    state = checkpoints.read_state(checkpoint)
    if state["position"] != state["step"] * data.batch_size:
        raise UserError(
            f"{checkpoint}: was made with --batch_size {state['position'] // state['step']}, now {data.batch_size}"
        )
    if changed := data_changes(state["fingerprint"], data.fingerprint()):
        raise UserError(f"the data has changed since {checkpoint}: {'; '.join(changed[:4])}{' …' if changed[4:] else ''}; bring back what was "
                        f"there, or start anew with another --run_dir")  # fmt: skip


def data_changes(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = []
        for key in dict.fromkeys([*was, *now]):
            where = f"{name}.{key}" if name else str(key)
            if key not in now:
                found.append(f"{where} is gone")
            elif key not in was:
                found.append(f"{where} is new")
            else:
                found += data_changes(was[key], now[key], where)
        return found
    if was == now:
        return []
    is_long = isinstance(was, list) or len(str(was)) > 30
    return [f"{name} is another one" if is_long else f"{name} was {was}, is {now}"]


def _set_step(trainer: Trainer, step: int) -> None:
    """Make Lightning's counters say that `step` optimizer steps are done, one batch each."""
    loop = trainer.fit_loop.epoch_loop
    for counter in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, counter, step)
    loop.manual_optimization.optim_step_progress.total.ready = step
    loop.manual_optimization.optim_step_progress.total.completed = step
    loop._batches_that_stepped = step
