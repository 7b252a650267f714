"""Each process computes on its share of the machine's cores, and keeps the memory that it computes in."""

from lightning.pytorch import Callback, LightningModule, Trainer

from sslm.parallel.cores import share_of, take, usable_cpus
from sslm.system.limits import keep_freed_memory
from sslm.system.ranks import under_srun
from sslm.system.terminal import say


class Cores(Callback):
    """Takes a share of the cores once all processes are there: what is started before would have the same share.

    srun gives tasks their cores itself.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        if under_srun():
            return
        share = share_of(trainer.local_rank, trainer.num_devices, usable_cpus())
        if (words := take(share if on_cpu else share._replace(cpus=None))) is not None:
            say(f"Cores: {words} (OMP_NUM_THREADS would decide)")
