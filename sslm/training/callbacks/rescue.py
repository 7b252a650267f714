"""What an error leaves: a checkpoint of all that has been trained, if the weights are sound on all ranks."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.distributed.distributed_c10d import _get_default_store

from sslm.models.weights import local_part
from sslm.runs.checkpoints.folder import step_of
from sslm.system.errors import RunFailed
from sslm.system.terminal import say
from sslm.training.callbacks.checkpoint import Checkpoint
from sslm.training.module import Objective

RESCUE_SECONDS = 10.0
"""How long a rank that met an error waits for the others to have met one too, so that what they have can be saved."""


class Rescue(Callback):
    """Save what has been trained since the last checkpoint when an error ends the run.

    All ranks must end between two updates, and their weights must be finite.

    Args:
        checkpoint: what saves.
        write_rows: called before, and may raise: a checkpoint whose steps' rows are not on the disk would lose them.
    """

    def __init__(self, checkpoint: Checkpoint, write_rows: Callable[[], None]) -> None:
        self.checkpoint, self.write_rows = checkpoint, write_rows

    def on_exception(self, trainer: Trainer, pl_module: Objective, exception: BaseException) -> None:
        has_begun = self.checkpoint.saver is not None
        if not has_begun or not isinstance(exception, Exception) or isinstance(exception, RunFailed):
            return
        with suppress(Exception):  # the error itself is what is to be told
            self.checkpoint.finish(RESCUE_SECONDS)
            pl_module.anomaly_detector.learn(before=trainer.global_step)
            if pl_module.anomaly_detector.news:  # which nobody would put on record
                return
            step = self.checkpoint.step(trainer, pl_module)
            if trainer.is_global_zero:
                self.write_rows()
            if step > step_of(self.checkpoint.newest) and all_are_sound(pl_module):
                self.checkpoint.save(trainer, pl_module)
                self.checkpoint.finish()
                say(f"Saved at step {step_of(self.checkpoint.newest)}, before this error")


def all_are_sound(pl_module: Objective) -> bool:
    """Whether all ranks come here in time, each with sound weights.

    See docs/lessons.md, "A collective waits for a rank that has not failed".
    """
    weights = [local_part(parameter) for parameter in pl_module.network.parameters()]
    is_sound = not pl_module.engine.is_updating and all(bool(weight.isfinite().all()) for weight in weights)
    if pl_module.side_group is None or not is_sound:
        return is_sound
    store, end = _get_default_store(), time.monotonic() + RESCUE_SECONDS
    store.add("sslm/sound", 1)
    while (is_late := store.add("sslm/sound", 0) < dist.get_world_size()) and time.monotonic() < end:
        time.sleep(0.1)
    return not is_late
