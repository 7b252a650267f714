"""Validate at step 0, every `every` optimizer steps, and at the end, before the checkpoint of that step is written."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from sslm.training.lightning import validate
from sslm.training.module import Objective


class Validation(Callback):
    """Runs the validation loop every `every` optimizer steps, and after the last of `total_steps`."""

    def __init__(self, every: int, total_steps: int) -> None:
        self.every, self.total_steps = every, total_steps

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.global_step == 0:
            validate(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        pl_module.settles |= self._is_due(trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        if pl_module.anomaly_detector.must_rewind:
            return
        if self._is_due(trainer.global_step):
            validate(trainer)

    def _is_due(self, step: int) -> bool:
        return step % self.every == 0 or step >= self.total_steps
