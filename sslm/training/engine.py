"""Who clips the gradient and updates the weights: torch's optimizer, or DeepSpeed's engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from sslm.models.head import LanguageModel
from sslm.parallel.deepspeed import DeepSpeed
from sslm.runs.checkpoints.states import States
from sslm.runs.checkpoints.tensors import Tensors
from sslm.training.average import Average
from sslm.training.optim import clip_gradient, make_moments


class LossScaler(Protocol):
    """What scales the loss in fp16: torch's GradScaler, or what speaks for DeepSpeed's."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunStates(Protocol):
    """What gives and takes a run's tensors: weights, optimizer states, averages of weights."""

    def tensors(self) -> Tensors: ...

    def load(self, checkpoint: Path) -> None: ...


class Engine(Protocol):
    """What takes an optimizer step, once all gradients are there."""

    can_withhold: bool
    """Whether an anomalous update can be left out: if not, the gradient norm is known only after the update."""
    is_updating: bool
    """Whether weights and optimizer states are between two steps' values."""

    def step(self, is_anomalous: Callable[[Tensor], bool]) -> Tensor:
        """Clip the gradient, update the weights, and forget the gradient; all ranks call it together.

        Args:
            is_anomalous: asked once, with the gradient norm before clipping. If it says yes, the update is left out, if
                `can_withhold`.

        Returns:
            The gradient norm before clipping, a scalar.
        """

    def before_update(self) -> None:
        """Called by Lightning's hook inside `step`, when the loss scaler has been dealt with."""

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
        network: LanguageModel,
        optimizer: LightningOptimizer,
        scaler: torch.amp.GradScaler | None,
        clip_norm: float | None,
        average: Average | None,
    ) -> None:
        self.network, self.optimizer, self.loss_scaler = network, optimizer, scaler
        self.max_norm = clip_norm or float("inf")
        averages = None if average is None else average.tensors
        make_moments(optimizer.optimizer)
        self.states = States(network, optimizer.optimizer, averages)
        self.is_updating = False

    def step(self, is_anomalous: Callable[[Tensor], bool]) -> Tensor:
        self.is_anomalous = is_anomalous
        self.is_updating = True
        self.optimizer.step()
        self.is_updating = False
        self.optimizer.zero_grad()
        return self.grad_norm

    def before_update(self) -> None:
        optimizer = self.optimizer.optimizer
        if self.loss_scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            self.loss_scaler.unscale_(optimizer)  # Lightning leaves it to fused optimizers, which do it after clipping
        self.grad_norm = clip_gradient(self.network.parameters(), self.max_norm)
        if self.is_anomalous(self.grad_norm):
            optimizer.zero_grad()  # a weight without gradient stays as it is, and so do its moments and count of steps


def choose_engine(
    trainer: Trainer,
    network: LanguageModel,
    optimizer: LightningOptimizer,
    clip_norm: float | None,
    average: Average | None,
) -> Engine:
    """The engine that belongs to the trainer's strategy, once that is set up."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if isinstance(strategy, DeepSpeed):
        return strategy.engine(network, optimizer)
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    return PlainEngine(network, optimizer, scaler, clip_norm, average)
