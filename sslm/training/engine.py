"""Who clips the gradient and updates the weights: torch's optimizer, or DeepSpeed's engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from sslm.models.network import Network
from sslm.parallel.deepspeed import DeepSpeed
from sslm.runs.checkpoints.states import States
from sslm.runs.checkpoints.tensors import Tensors
from sslm.system.errors import UserError
from sslm.training.average import Average
from sslm.training.lightning import can_skip_inner_hooks, count_step
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.clipping import clipping_scale, gradient_norm
from sslm.training.pruning.pruner import Pruner


class LossScaler(Protocol):
    """What scales the loss in fp16: torch's GradScaler, or what speaks for DeepSpeed's."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunStates(Protocol):
    """What gives and takes a run's tensors: weights, optimizer states, averages of weights."""

    def tensors(self) -> Tensors: ...

    def load(self, checkpoint: Path) -> None: ...


Judge = Callable[[Tensor], Tensor | None]
"""Gradient norm -> 1 if the step is anomalous, else 0, a scalar on the device; or None if nobody looks."""


class Engine(Protocol):
    """What takes an optimizer step, once all gradients are there."""

    can_withhold: bool
    """Whether an anomalous update can be left out: if not, the gradient norm is known only after the update."""
    is_updating: bool
    """Whether weights and optimizer states are between two steps' values."""

    def backward(self, loss: Tensor) -> None:
        """Run one of a step's backward passes."""

    def step(self, number: int, judge: Judge) -> Tensor:
        """Clip the gradient, update the weights, and forget the gradient; all ranks call it together.

        Args:
            number: the step's, counted from 0.
            judge: asked once, with the gradient norm before clipping. Where it says 1, the update is left out, if
                `can_withhold`; the host need not know.

        Returns:
            The gradient norm before clipping, a scalar.
        """

    def before_update(self) -> None:
        """Called within `step`, by Lightning's hook or at its place."""

    @property
    def loss_scaler(self) -> LossScaler | None:
        """None if the loss is not scaled."""

    @property
    def states(self) -> RunStates: ...


class PlainEngine:
    """Our clipping and torch's optimizer, under any of Lightning's strategies but DeepSpeed's."""

    can_withhold = True

    def __init__(
        self,
        trainer: Trainer,
        network: Network,
        optimizer: LightningOptimizer,
        clip_norm: float | None,
        average: Average | None,
        pruner: Pruner | None,
    ) -> None:
        self.trainer, self.optimizer = trainer, optimizer
        precision = trainer.precision_plugin
        self.loss_scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        self.skips_hooks = self.loss_scaler is None and can_skip_inner_hooks(trainer)
        """Whether nobody hears Lightning's hooks around a backward pass and an update, and nothing is scaled."""
        self.clip_norm, self.average, self.pruner = clip_norm, average, pruner
        self.pipeline = network.pipeline
        if not isinstance(optimizer.optimizer, Optimizer):
            what = f"configure_optimizers gave {type(optimizer.optimizer).__name__}"
            raise UserError(f"{what}; give an optimizer made by build_optimizer, of sslm.training.optimizers.build")
        self.update = optimizer.optimizer
        self.update.make_states()
        averages = dict if average is None else lambda: average.tensors
        self.states = States(network, self.update, averages, dict if pruner is None else pruner.tensors)
        self.is_updating = False

    def backward(self, loss: Tensor) -> None:
        if self.skips_hooks:
            self.trainer.strategy.pre_backward(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.trainer.lightning_module.manual_backward(loss)

    def step(self, number: int, judge: Judge) -> Tensor:
        self.update.step_number, self.judge = number, judge
        self.is_updating = True
        if self.skips_hooks:
            self.before_update()
            self.update.step()
            count_step(self.trainer)
        else:
            self.optimizer.step()
        if self.average is not None:
            self.average.update(self.update.withheld)
        if self.pruner is not None:
            self.pruner.finish_step(number + 1, self.update, self.average)
        self.is_updating = False
        self.optimizer.zero_grad()
        return self.grad_norm

    def before_update(self) -> None:
        if self.loss_scaler is not None:  # Lightning leaves it to fused optimizers, which unscale after clipping
            self.loss_scaler.unscale_(self.update)
        if self.pruner is not None:
            self.pruner.mask_gradients()
        pipeline, parameters = self.pipeline, self.update.parameters()
        if pipeline is None:
            self.grad_norm = gradient_norm(parameters)
        else:
            self.grad_norm = gradient_norm(pipeline.counted(parameters), pipeline.group)
        self.update.grad_scale = None if self.clip_norm is None else clipping_scale(self.grad_norm, self.clip_norm)
        self.update.withheld = self.judge(self.grad_norm)
        if self.pruner is not None:
            self.pruner.follow(self.update.withheld)


def choose_engine(
    trainer: Trainer,
    network: Network,
    optimizer: LightningOptimizer,
    clip_norm: float | None,
    average: Average | None,
    pruner: Pruner | None,
) -> Engine:
    """The engine that belongs to the trainer's strategy, once that is set up."""
    if isinstance(trainer.strategy, DeepSpeed):
        return trainer.strategy.engine(network, optimizer)
    return PlainEngine(trainer, network, optimizer, clip_norm, average, pruner)
