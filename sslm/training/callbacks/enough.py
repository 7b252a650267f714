"""Ends a run at a validation that shows that it has learned enough (--stop_when)."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from sslm.system.collectives import gather_json
from sslm.system.terminal import say
from sslm.training.module import Objective
from sslm.training.stopping import Stopping, StopWhen


class Enough(Callback):
    """Looks at each validation, between it and the checkpoint of its step; without a rule it does nothing."""

    def __init__(self, rule: StopWhen | None) -> None:
        self.rule = rule

    def setup(self, trainer: Trainer, pl_module: Objective, stage: str) -> None:
        pl_module.stopping = None if self.rule is None else Stopping(self.rule)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        step, stopping = trainer.global_step, pl_module.stopping
        if stopping is None or pl_module.validated_at != step or pl_module.anomaly_detector.must_rewind:
            return
        if pl_module.is_pruning:
            return
        value = pl_module.measured.get(stopping.rule.metric)
        if value is None:
            there = ", ".join(pl_module.measured)
            say(f"Warning: --stop_when {stopping.rule.text}: {stopping.rule.metric} is not measured; there are {there}")
            return
        if stopping.see(gather_json(value, pl_module.side_group)[0]):  # the first rank's: all go the same way
            trainer.should_stop = True
