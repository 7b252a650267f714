"""Every reach into Lightning's private or loop state, as verbs."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.device_mesh import DeviceMesh
from torch.optim.lr_scheduler import LRScheduler

from sslm.data.module import DataModule
from sslm.system.errors import UserError


def data_of(trainer: Trainer) -> DataModule | None:
    """The trainer's data module, or None if it was given loaders; Lightning sets the attribute only if there is one."""
    return getattr(trainer, "datamodule", None)


def scheduler_of(trainer: Trainer) -> LRScheduler | None:
    """The scheduler of another, as Lightning's LearningRateFinder lends one to the trainer; objectives have none."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return schedulers[0] if schedulers and isinstance(schedulers[0], LRScheduler) else None


def give_mesh(module: LightningModule, mesh: DeviceMesh) -> None:
    """Give a module the mesh of devices that its strategy would give it."""
    module._device_mesh = mesh


def check_settings(trainer: Trainer, is_sharded: bool) -> None:
    """Refuse what objectives do themselves, a batch being one optimizer step, and what would do nothing or harm.

    Args:
        trainer: the trainer.
        is_sharded: whether the objective shards its weights, which the strategy does not.

    Raises:
        UserError: the trainer is to do such a thing.
    """
    warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")  # what is after a step is meant
    if trainer.state.fn == TrainerFn.PREDICTING:
        instead = "Trainer.test measures held-out text; sslm generate and sslm predict write down what a model says"
        raise UserError(f"Trainer.predict: an objective only measures; {instead}")
    if (times := trainer.accumulate_grad_batches) != 1:
        instead = (
            "a batch is one optimizer step already; leave it out, and give the objective micro_batch_size to split it"
        )
        raise UserError(f"Trainer(accumulate_grad_batches={times}): {instead}")
    if norm := trainer.gradient_clip_val:
        instead = f"leave it out, and give the objective optim=OptimConfig(clip_norm={norm}), of sslm.config"
        raise UserError(f"Trainer(gradient_clip_val={norm}): {instead}")
    if number := trainer.overfit_batches:
        instead = "batches follow on each other and none comes again; leave it out, and train on a text of that size"
        raise UserError(f"Trainer(overfit_batches={number}): {instead}")
    name, by_sslm = type(trainer.strategy).__name__, "sslm train --strategy fsdp, or deepspeed_2"
    if isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy) and not is_sharded:
        raise UserError(f"Trainer(strategy={name}): would not shard this; give strategy='ddp', or type {by_sslm}")
    for callback in trainer.callbacks:
        _check_callback(callback, trainer)


def _check_callback(callback: Callback, trainer: Trainer) -> None:
    name = type(callback).__name__
    if isinstance(callback, GradientAccumulationScheduler):
        instead = "a batch is one optimizer step already; leave it out, and give the objective micro_batch_size"
        raise UserError(f"{name}: {instead} to split it")
    if isinstance(callback, StochasticWeightAveraging):
        instead = "leave it out, and give the objective optim=OptimConfig(average_decay=0.999), of sslm.config"
        raise UserError(f"{name}: copies a module before it has weights; {instead}")
    is_never_told = trainer.state.fn == TrainerFn.FITTING and not trainer.limit_val_batches
    if isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/") and is_never_told:
        raise UserError(f"{name}({callback.monitor!r}): Trainer(limit_val_batches=0) never validates; leave out either")


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, at no cost: Lightning's own makes a context of its own for each hook of each callback."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        return self.nothing


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch's batches, for an objective with its data module.

    Counters and hooks are as in Lightning's, in its order. Left out is what sslm has no use for: schedulers, loggers,
    Lightning's own validation, and questions asked anew for each batch (does `training_step` take a number?).

    See docs/lessons.md, 'Lightning asks many questions about every batch'.
    """

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.manual_optimization.on_run_start()  # counts optimizer steps from here on

    @property
    def global_step(self) -> int:
        return self.manual_optimization.optim_step_progress.total.completed

    def advance(self, data_fetcher: Any) -> None:
        trainer: Any = self.trainer
        module, progress = trainer.lightning_module, self.batch_progress
        number = progress.current.ready
        batch, *_ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        share = trainer.datamodule.on_before_batch_transfer(batch, 0)
        share = trainer.datamodule.transfer_batch_to_device(share, trainer.strategy.root_device, 0)
        progress.increment_ready()
        for callback in trainer.callbacks:
            callback.on_train_batch_start(trainer, module, share, number)
        progress.increment_started()
        module._current_fx_name = "training_step"  # what `log` asks for
        outputs = trainer.strategy.training_step(share, number)
        progress.increment_processed()
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, outputs, share, number)
        module.on_train_batch_end(outputs, share, number)
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: Any) -> None:
        self._batches_that_stepped += 1


def use_step_loop(trainer: Trainer) -> None:
    """Let the trainer drive its batches by `StepLoop`; it is to have no loggers and no schedulers."""
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, loop.min_steps, loop.max_steps)


INNER_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""A callback's hooks within a step."""


def can_skip_inner_hooks(trainer: Trainer) -> bool:
    """Whether `StepLoop` drives the batches, and no callback has a hook within a step."""
    heard = (is_overridden(hook, callback) for hook in INNER_HOOKS for callback in trainer.callbacks)
    return isinstance(trainer.fit_loop.epoch_loop, StepLoop) and not any(heard)


def count_step(trainer: Trainer) -> None:
    """Count an optimizer step that was taken without Lightning's wrapper of the optimizer."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


def set_step(trainer: Trainer, step: int) -> None:
    """Make Lightning's counters say that `step` optimizer steps are done, one batch each."""
    loop = trainer.fit_loop.epoch_loop
    for counter in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, counter, step)
    loop.manual_optimization.optim_step_progress.total.ready = step
    loop.manual_optimization.optim_step_progress.total.completed = step
    loop._batches_that_stepped = step


def validate(trainer: Trainer) -> None:
    """Run the trainer's validation loop now.

    See docs/lessons.md, 'Validation runs after the checkpoint'.
    """
    connector = trainer._logger_connector
    first_loop_iter = connector._first_loop_iter
    trainer.validating = True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True
        connector._first_loop_iter = first_loop_iter


def skip_next_validation(trainer: Trainer) -> None:
    """Keep Lightning from validating because the run stops; `Validation` decides when."""
    trainer.fit_loop.epoch_loop._skip_next_val = True


def end_epoch_here(trainer: Trainer) -> None:
    """End Lightning's epoch with this batch, as if it were the loader's last; the next begins at the counters' step."""
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True


def stop_broadcasting_sigterm(trainer: Trainer) -> None:
    """Spare each batch Lightning's own collective about signals, which can hang (its issue 20825)."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
