"""From names to Lightning: strategy, precision, devices, cluster; and who this process is."""

import ctypes
import os
import signal
import sys
import time
from typing import Any

from sslm.config import Config
from sslm.errors import UserError

STARTED_AT = time.monotonic()
"""When this process began, which --stop_after counts from."""

CPU_PROCESSES = 8
"""More processes than cores are allowed up to this: enough to try a strategy on a laptop."""


def is_first_process() -> bool:
    """Whether this is global rank 0, known before any process group is."""
    if _under_torchrun():
        return os.environ["RANK"] == "0"
    if _under_srun():
        return os.environ["SLURM_PROCID"] == "0"
    return not is_child() and os.environ.get("NODE_RANK", "0") == "0"


def is_child() -> bool:
    """Whether Lightning's launcher started this process, as one of the local ranks of another."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and not _under_torchrun() and not _under_srun()


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _under_srun() -> bool:
    """Whether srun started this task; an interactive shell on a node has srun's variables too, but is no task."""
    return "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in (None, "bash", "interactive")


def die_with_parent() -> None:
    """Let the kernel end this child when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def trainer_settings(config: Config, num_parameters: int) -> dict[str, Any]:
    """The Trainer's accelerator, devices, num_nodes, strategy, precision and plugins.

    Raises:
        UserError: this machine has not what is asked for.
    """
    accelerator, devices, num_nodes = _devices(config)
    world = devices * num_nodes
    name: str = config.strategy
    if name == "auto":
        name = _choose(accelerator, world, num_parameters)
    if name == "single" and world > 1:
        raise UserError(
            f"--strategy single: runs on one device, got {world}; give --strategy ddp or fsdp, or --devices 1"
        )
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": _strategy(name, accelerator, world),
        "precision": _precision(config, accelerator),
        "plugins": _cluster(),
    }


def world_size(config: Config) -> int:
    _, devices, num_nodes = _devices(config)
    return devices * num_nodes


def _devices(config: Config) -> tuple[str, int, int]:
    """(accelerator, devices per node, nodes): as asked for, or as torchrun has started them, or all there are."""
    import torch

    asked, num_nodes = config.devices, config.num_nodes
    if _under_torchrun():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // local
        if asked not in (None, local):
            raise UserError(f"--devices {asked}: torchrun started {local} processes on this node; give --devices {local}, or "
                            f"leave it out")  # fmt: skip
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


def _choose(accelerator: str, world: int, num_parameters: int) -> str:
    """DDP while weights, gradients and optimizer states (16 bytes a parameter) leave half a device's memory free."""
    if world == 1:
        return "single"
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory if accelerator == "gpu" else float("inf")
    return "ddp" if 16 * num_parameters < memory / 2 else "fsdp"


def _strategy(name: str, accelerator: str, world: int) -> Any:
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

    backend = "nccl" if accelerator == "gpu" else "gloo"
    if name == "single":
        return SingleDeviceStrategy(device="cuda:0" if accelerator == "gpu" else "cpu")
    if name == "ddp":
        return DDPStrategy(process_group_backend=backend, broadcast_buffers=False, gradient_as_bucket_view=True)
    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, process_group_backend=backend)


def _precision(config: Config, accelerator: str) -> str:
    """Lightning's name. bf16-true is 32-true to Lightning: `parallelize` casts the weights, and nothing but these."""
    if config.precision == "auto":
        return "bf16-mixed" if accelerator == "gpu" else "32-true"
    return "bf16-mixed" if config.precision == "bf16-mixed" else "32-true"


def _cluster() -> list[Any]:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if _under_srun() and not _under_torchrun() else []
