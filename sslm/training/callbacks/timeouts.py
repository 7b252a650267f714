"""How long a collective operation may take, once all processes are there."""

from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _set_pg_timeout, _world


class Timeouts(Callback):
    """Sets the time limit of every process group when training starts; until then the start's own limit holds.

    A collective that takes longer ends the process with an error.
    """

    def __init__(self, collective_seconds: float) -> None:
        self.limit = timedelta(seconds=collective_seconds)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if dist.is_initialized():
            for group in list(_world.pg_map):
                _set_pg_timeout(self.limit, group)
