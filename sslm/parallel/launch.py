"""From names to Lightning: strategy, precision, devices, cluster; and who this process is."""

import os
from dataclasses import dataclass, field

import torch

from sslm.config import Config
from sslm.system.errors import UserError
from sslm.system.ranks import under_srun, under_torchrun

CPU_PROCESSES = 8
"""More processes than cores are allowed up to this: enough to try a strategy on a laptop."""


def data_parallel_size(config: Config) -> int:
    """Shares of the global batch: one for each device, or for those together that share each matrix."""
    _, per_node, num_nodes = devices(config)
    return max(per_node * num_nodes // tensor_parallel_size(config, config.strategy, per_node, num_nodes), 1)


def tensor_parallel_size(config: Config, strategy: str, per_node: int, num_nodes: int) -> int:
    """Devices that share each matrix: as asked for, or all (tp), or those of a node (fsdp_tp)."""
    default = {"tp": per_node * num_nodes, "fsdp_tp": per_node}.get(strategy)
    return 1 if default is None else config.tensor_parallel_size or default


def devices(config: Config) -> tuple[str, int, int]:
    """(accelerator, devices per node, nodes): as torchrun or srun has started them, or as asked for, or all there are."""

    asked, num_nodes = config.devices, config.num_nodes
    if under_torchrun():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // local
        if asked not in (None, local):
            raise UserError(
                f"--devices {asked}: torchrun started {local} processes on this node; give --devices {local}, or "
                f"leave it out"
            )
        asked = local
    elif under_srun():
        num_nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
        local, uneven = divmod(tasks, num_nodes)
        if uneven:
            raise UserError(
                f"srun --ntasks {tasks}: {num_nodes} nodes can't have as many each; give srun --ntasks-per-node"
            )
        for flag, given, default, started in (
            ("devices", asked, None, local),
            ("num_nodes", config.num_nodes, 1, num_nodes),
        ):
            if given not in (default, started):
                raise UserError(
                    f"--{flag} {given}: srun started {local} tasks on each of {num_nodes} nodes; give --{flag} {started}, or "
                    f"leave it out"
                )
        asked = local
    gpus = torch.cuda.device_count()
    if config.accelerator == "gpu" and not gpus:
        raise UserError("--accelerator gpu: this machine has no GPU that torch can use; give --accelerator cpu")
    if config.accelerator == "cpu" or not gpus:
        most = max(os.cpu_count() or 1, CPU_PROCESSES)
        if asked and asked > most:
            raise UserError(f"--devices {asked}: this machine has {os.cpu_count()} CPU cores; give at most {most}")
        return "cpu", asked or 1, num_nodes
    if asked and asked > gpus:
        raise UserError(f"--devices {asked}: this machine has {gpus} GPUs; give at most {gpus}")
    return "gpu", asked or gpus, num_nodes


@dataclass(frozen=True)
class Launch:
    """What a run is launched on, and how: `auto` is settled."""

    accelerator: str
    """cpu or gpu."""
    devices: int
    """Devices per node."""
    num_nodes: int
    strategy: str
    precision: str
    replicas: int = 1
    """hsdp: groups of devices that hold all of the weights among them."""
    tensor_parallel_size: int = 1
    """Devices that share each matrix."""
    why: str = field(default="as asked", repr=False, compare=False)
    """Why this strategy, in words."""

    @property
    def world(self) -> int:
        return self.devices * self.num_nodes

    @property
    def data_parallel_size(self) -> int:
        """Parts of the global batch: one for each device, or for each group of devices that share each matrix."""
        return max(self.world // self.tensor_parallel_size, 1)

    @property
    def device_type(self) -> str:
        """As torch calls it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's; 0: another strategy."""
        return int(self.strategy[-1]) if self.strategy.startswith("deepspeed") else 0

    @property
    def autocasts_to_bf16(self) -> bool:
        return self.precision in ("bf16-mixed", "fp8")

    @property
    def holds_bf16(self) -> bool:
        """Whether weights are in bf16 and nowhere else (DeepSpeed keeps fp32 copies)."""
        return self.precision == "bf16-true" and not self.zero_stage
