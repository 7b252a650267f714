"""One micro-batch size on all ranks, remembered in the run folder."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from sslm.parallel.planning.micro_batch import remembered_sizes
from sslm.system.errors import is_out_of_memory
from sslm.system.files import write_atomically
from sslm.training.module import Objective


class MicroBatch(Callback):
    """Gives all ranks the smallest of the micro-batch sizes that fit in their memories, and remembers it.

    Args:
        file: where sizes are kept, by key.
        micro_batch_key: names the devices, the strategy and all else that a size depends on.
    """

    def __init__(self, file: Path, micro_batch_key: str) -> None:
        self.file, self.micro_batch_key = file, micro_batch_key
        self.has_begun = self.is_known = False

    def on_fit_start(self, trainer: Trainer, pl_module: Objective) -> None:
        assert pl_module.micro_batch_size is not None
        size = torch.tensor(pl_module.micro_batch_size)  # all divide a device's share, so the smallest does
        if pl_module.side_group is not None:
            dist.all_reduce(size, op=dist.ReduceOp.MIN, group=pl_module.side_group)
        pl_module.micro_batch_size = int(size)

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self.has_begun = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        is_new = not self.is_known and trainer.is_global_zero
        if is_new and self.micro_batch_key not in remembered_sizes(self.file):  # it may be too large for another rank
            self._remember(pl_module.micro_batch_size)
        self.is_known = True

    def on_exception(self, trainer: Trainer, pl_module: Objective, exception: BaseException) -> None:
        """Remember the next smaller size if this one did not fit after all: the same command then goes on with it.

        Any rank does: the others learn nothing of it any more. Those that run out of memory at once write the same.
        """
        size = pl_module.micro_batch_size
        if self.has_begun and is_out_of_memory(exception) and size is not None and size > 1:
            self._remember(max(n for n in range(1, size) if size % n == 0))

    def _remember(self, size: int | None) -> None:
        sizes = remembered_sizes(self.file) | {self.micro_batch_key: size}
        write_atomically(self.file, json.dumps(sizes, indent=1) + "\n")
