"""What a run does on its device: the dtypes of its matmuls, waits of the host, the allocator's peak."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from sslm.cli import train as cli_train
from sslm.models.head import LanguageModel
from sslm.parallel import materialise
from sslm.parallel.planning import forward_record
from sslm.parallel.planning.even_shares import even_shares
from sslm.training.callbacks.validation import Validation

MATMULS = {"mm", "addmm", "_scaled_mm"}
"""Of linear layers; attention's are batched."""


@contextmanager
def trainer_callback(callback: Callback) -> Iterator[None]:
    """Give the trainers of `sslm train` one more callback."""
    build = cli_train.build_trainer

    def build_with_callback(*arguments: Any) -> Trainer:
        trainer = build(*arguments)
        trainer.callbacks.append(callback)
        return trainer

    cli_train.build_trainer = build_with_callback
    try:
        yield
    finally:
        cli_train.build_trainer = build


class Matmuls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the dtypes of matmuls inside blocks that are in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()
        self.depth = 0
        nn.modules.module.register_module_forward_pre_hook(self._enter)
        nn.modules.module.register_module_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.depth += is_training_block(module)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        self.depth -= is_training_block(module)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if self.depth and name in MATMULS:
            factor = args[1 if name == "addmm" else 0]
            if factor.is_cuda:  # the plan's forward pass is on no device
                self.dtypes[str(factor.dtype).removeprefix("torch.")] += 1
        return function(*args, **(kwargs or {}))


def is_training_block(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.training


class Steps(Callback):
    """Knows whether the run is in the steps that are watched: those after the first, but for the last.

    DDP times its first ten micro-batches, and waits for that.
    """

    FIRST = 11
    are_watched = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.are_watched = self.FIRST <= trainer.global_step < trainer.max_steps - 1


class NoWaits(Steps):
    """Has torch raise an error where the host waits for the device in these steps."""

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        super().on_train_batch_start(trainer, *arguments)
        torch.cuda.set_sync_debug_mode("error" if self.are_watched else "default")


class Plan:
    """Notes how many bytes are planned for each device, by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        choose = cli_train.choose_micro_batch_size

        def choose_and_note(config: Any, folder: Any, budget: Any, launch: Any) -> int | None:
            self.parts.update(budget.memory(launch, budget.chosen_size(launch)).parts)
            return choose(config, folder, budget, launch)

        cli_train.choose_micro_batch_size = choose_and_note
        try:
            yield
        finally:
            cli_train.choose_micro_batch_size = choose


class Peak(Callback):
    """Notes the allocator's peak in the second step, when all states are there, and calls `then`."""

    def __init__(self, then: Any) -> None:
        self.then = then

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.then(torch.cuda.max_memory_allocated())


def without_contents() -> None:
    """Let this process train where kernels do nothing: on a fake GPU, at real sizes.

    Weights are left as they are, nothing is validated, and each expert of a mixture is sent equally many tokens. An
    LSTM's buffer is not planned for: the fake cuDNN asks for none.
    """
    forward_record.LSTM_RESERVE = 0
    materialise.fill = lambda target, whole: None
    materialise.in_turn = lambda model, seed: iter(())
    Validation.on_train_start = lambda *_: None  # which looks at what the kernels left undone
    forward = LanguageModel.forward

    def forward_in_shares(network: Any, *arguments: Any, input_ids: Any, **inputs: Any) -> Any:
        if not (input_ids.is_cuda and is_mixture(network.model.config)):
            return forward(network, *arguments, input_ids=input_ids, **inputs)
        with even_shares(network.model, input_ids.numel()):
            return forward(network, *arguments, input_ids=input_ids, **inputs)

    LanguageModel.forward = forward_in_shares


def is_mixture(config: Any) -> bool:
    return bool(getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None))
