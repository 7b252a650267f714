"""From names to Lightning: strategy, precision, devices, cluster; and who this process is."""

import ctypes
import os
import signal
import sys
from typing import Any

from sslm.config import Config
from sslm.errors import UserError

CPU_PROCESSES = 8
"""More processes than cores are allowed up to this: enough to try a strategy on a laptop."""


def is_first_process() -> bool:
    """Whether this is global rank 0, known before any process group is."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    return rank == "0" and os.environ.get("NODE_RANK", "0") == "0"


def is_child() -> bool:
    """Whether Lightning's launcher started this process, as one of the local ranks of another."""
    return (
        os.environ.get("LOCAL_RANK", "0") != "0"
        and "TORCHELASTIC_RUN_ID" not in os.environ
        and "SLURM_PROCID" not in os.environ
    )


def die_with_parent() -> None:
    """Let the kernel end this child when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def trainer_settings(config: Config, num_parameters: int) -> dict[str, Any]:
    """The Trainer's accelerator, devices, num_nodes, strategy, precision and plugins.

    Raises:
        UserError: this machine has not what is asked for.
    """
    accelerator, devices = _devices(config)
    world = devices * config.num_nodes
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
        "num_nodes": config.num_nodes,
        "strategy": _strategy(name, accelerator, world),
        "precision": _precision(config, accelerator),
        "plugins": _cluster(),
    }


def world_size(config: Config) -> int:
    return _devices(config)[1] * config.num_nodes


def _devices(config: Config) -> tuple[str, int]:
    import torch

    if "LOCAL_WORLD_SIZE" in os.environ and config.devices not in (None, int(os.environ["LOCAL_WORLD_SIZE"])):
        raise UserError(f"--devices {config.devices}: torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on this node; give "
                        f"--devices {os.environ['LOCAL_WORLD_SIZE']}, or leave it out")  # fmt: skip
    asked = config.devices or int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    gpus = torch.cuda.device_count()
    if config.accelerator == "gpu" and not gpus:
        raise UserError("--accelerator gpu: this machine has no GPU that torch can use; give --accelerator cpu")
    if config.accelerator == "cpu" or not gpus:
        most = max(os.cpu_count() or 1, CPU_PROCESSES)
        if asked > most:
            raise UserError(f"--devices {asked}: this machine has {os.cpu_count()} CPU cores; give at most {most}")
        return "cpu", asked or 1
    if asked > gpus:
        raise UserError(f"--devices {asked}: this machine has {gpus} GPUs; give at most {gpus}")
    return "gpu", asked or gpus


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
    if config.precision == "auto":
        return "bf16-mixed" if accelerator == "gpu" else "32-true"
    return "32-true" if config.precision == "32" else config.precision


def _cluster() -> list[Any]:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
