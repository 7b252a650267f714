"""From names to Lightning: strategy, precision, devices, cluster; and who this process is."""

import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from sslm.config import Config
from sslm.errors import UserError

if TYPE_CHECKING:
    from sslm.strategies import Launch

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
    """Whether srun started this task. The shell of a batch script, or an interactive one, has SLURM's variables too, but is no task
    of many."""
    is_interactive = os.environ.get("SLURM_JOB_NAME") in (None, "bash", "interactive")  # so salloc names its jobs
    return "SLURM_STEP_ID" in os.environ and (not is_interactive or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def die_with_parent() -> None:
    """Let the kernel end this child when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def leave() -> None:
    """End this process at once, with 0: the first process alone tells the shell that the run stopped, and takes longer to end. A task
    that ended with 75 before it would have srun end it (--kill-on-bad-exit)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def trainer_settings(config: Config, launch: "Launch") -> dict[str, Any]:
    """The Trainer's accelerator, devices, num_nodes, strategy and plugins (precision, cluster)."""
    from sslm.strategies import strategy_and_precision

    strategy, precision = strategy_and_precision(config, launch)
    return {
        "accelerator": launch.accelerator,
        "devices": launch.devices,
        "num_nodes": launch.num_nodes,
        "strategy": strategy,
        "plugins": [precision, *_cluster()],
    }


def num_shares(config: Config) -> int:
    """Shares of the global batch: one for each device, or for those together that share each matrix."""
    _, per_node, num_nodes = devices(config)
    return max(per_node * num_nodes // tensor_parallel_size(config, config.strategy, per_node, num_nodes), 1)


def tensor_parallel_size(config: Config, strategy: str, per_node: int, num_nodes: int) -> int:
    """Devices that share each matrix: as asked for, or all (tp), or those of a node (fsdp_tp)."""
    default = {"tp": per_node * num_nodes, "fsdp_tp": per_node}.get(strategy)
    return 1 if default is None else config.tensor_parallel_size or default


def devices(config: Config) -> tuple[str, int, int]:
    """(accelerator, devices per node, nodes): as torchrun or srun has started them, or as asked for, or all there are."""
    import torch

    asked, num_nodes = config.devices, config.num_nodes
    if _under_torchrun():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // local
        if asked not in (None, local):
            raise UserError(f"--devices {asked}: torchrun started {local} processes on this node; give --devices {local}, or "
                            f"leave it out")  # fmt: skip
        asked = local
    elif _under_srun():
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
                raise UserError(f"--{flag} {given}: srun started {local} tasks on each of {num_nodes} nodes; give --{flag} {started}, or "
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


def _cluster() -> list[Any]:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from sslm.clusters import Slurm

    if _under_torchrun() or "SLURM_NTASKS" not in os.environ:
        return []  # Lightning sees by itself which it is
    return [Slurm() if _under_srun() else LightningEnvironment()]
