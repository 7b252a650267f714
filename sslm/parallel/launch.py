"""What a run is launched on: devices, strategy and precision, with `auto` settled."""

import os
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from sslm.config import Config
from sslm.models.attention import Attention
from sslm.system.errors import UserError
from sslm.system.ranks import under_srun, under_torchrun
from sslm.system.terminal import plural

CPU_PROCESSES = 8
"""More processes than cores are allowed up to this: enough to try a strategy on a laptop."""


Compiled = Literal["off", "block", "model"]
Scaling = Literal["tensor", "row", "block"]
"""What shares a scale of those that are multiplied in 8 bits: all of a tensor, a row, 32 numbers of a row."""
SCALINGS: dict[str, Scaling] = {"fp8": "tensor", "fp8-rowwise": "row", "mxfp8": "block"}
"""Precision -> what shares a scale."""


class Strategy(NamedTuple):
    """What a strategy does with the devices. The rest of the code asks this, never the name."""

    is_single: bool = False
    """Runs on one device."""
    shards_weights: bool = False
    """FSDP2 shards weights, gradients and optimizer states."""
    replicates_shards: bool = False
    """Several groups of devices each hold all of the shards."""
    tensor_parallel: Literal["all", "node"] | None = None
    """Devices that share each matrix by default: all, or those of a node. None if no matrix is shared."""
    zero_stage: int = 0
    """DeepSpeed's ZeRO stage, or 0 without DeepSpeed."""
    is_pipeline: bool = False
    """Each device has some of the blocks."""

    @property
    def scales_losses(self) -> bool:
        """Whether fp16 has loss scaling: Lightning has none where there is a mesh."""
        return not self.has_mesh

    @property
    def has_mesh(self) -> bool:
        """Whether devices hold different weights, and Lightning gives the module their mesh."""
        return self.shards_weights or self.tensor_parallel is not None or self.is_pipeline


STRATEGIES = {
    "single": Strategy(is_single=True),
    "ddp": Strategy(),
    "fsdp": Strategy(shards_weights=True),
    "hsdp": Strategy(shards_weights=True, replicates_shards=True),
    "tp": Strategy(tensor_parallel="all"),
    "fsdp_tp": Strategy(shards_weights=True, tensor_parallel="node"),
    "pp": Strategy(is_pipeline=True),
    "deepspeed_1": Strategy(zero_stage=1),
    "deepspeed_2": Strategy(zero_stage=2),
    "deepspeed_3": Strategy(zero_stage=3),
}


@dataclass(frozen=True)
class Launch:
    """What a run is launched on, and how."""

    accelerator: str
    """cpu or gpu."""
    devices: int
    """Devices per node."""
    num_nodes: int
    strategy: str
    precision: str
    replicas: int = 1
    """Groups of devices that hold all of the weights among them (hsdp)."""
    tensor_parallel_size: int = 1
    """Devices that share each matrix."""
    context_parallel_size: int = 1
    """Devices that share each row."""
    expert_parallel_size: int = 1
    """Devices that share each block's experts."""
    shares_places: bool = False
    """Whether devices that share matrices have some places of every row each between these (sequence parallelism)."""
    compiled: Compiled = "off"
    """What torch.compile takes as one piece."""
    is_async: bool = False
    """Whether compiled blocks hide the messages of tensor parallelism behind matmuls (async TP)."""
    attention: Attention = "sdpa"
    """What computes attention."""
    why: str = field(default="as asked", repr=False, compare=False)
    """Why this strategy, in words."""
    masks_because: str | None = field(default=None, repr=False, compare=False)
    """Why SDPA gets explicit masks on a GPU, which is slow; None if it doesn't."""

    @property
    def traits(self) -> Strategy:
        return STRATEGIES[self.strategy]

    @property
    def world(self) -> int:
        """Devices on all nodes."""
        return self.devices * self.num_nodes

    @property
    def data_parallel_size(self) -> int:
        """Parts of the global batch: one for each device, or for each group of devices that share matrices or rows."""
        return max(self.world // (self.tensor_parallel_size * self.context_parallel_size * self.num_stages), 1)

    @property
    def num_stages(self) -> int:
        """Devices that have some of the blocks each; 1 if each has all."""
        return self.world if self.traits.is_pipeline else 1

    @property
    def device_type(self) -> str:
        """The devices as torch calls them."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def strategy_in_words(self) -> str:
        """The strategy, and why it is this one if there was a choice."""
        places = "" if self.shares_places else "not "
        how = f"; places of a row {places}shared between matrices" if self.tensor_parallel_size > 1 else ""
        return f"strategy {self.strategy}" + ("" if self.traits.is_single else f" ({self.why}{how})")

    @property
    def precision_in_words(self) -> str:
        if self.precision != "32":
            return self.precision
        return "fp32" if self.accelerator == "cpu" else "fp32 (32-tf32: matrices in TF32, less exact and faster)"

    @property
    def chunks_loss(self) -> bool:
        """Whether the loss is computed some places at a time, outside of the head's own call.

        The compiler makes one graph of a whole model's head and loss; ZeRO-3 has a weight within its module's call.
        """
        return self.compiled != "model" and self.traits.zero_stage < 3

    @property
    def compiled_in_words(self) -> str:
        """What is compiled, to be said after the precision; nothing if nothing is."""
        words = {"off": "", "block": ", each block compiled", "model": ", compiled as a whole"}[self.compiled]
        return f"{words}, messages behind matmuls (async TP)" if self.is_async else words

    @property
    def computes_in_fp32(self) -> bool:
        return self.precision in ("32", "32-tf32")

    @property
    def autocasts_to_bf16(self) -> bool:
        return self.precision == "bf16-mixed" or self.float8 is not None

    @property
    def float8(self) -> Scaling | None:
        """How the blocks' matmuls are scaled in 8 bits; None if they are in a wider type."""
        return SCALINGS.get(self.precision)

    @property
    def holds_bf16(self) -> bool:
        """Whether there are weights in bf16 and no others (DeepSpeed keeps fp32 copies)."""
        return self.precision == "bf16-true" and not self.traits.zero_stage


class Devices(NamedTuple):
    """Devices of a run."""

    accelerator: str
    per_node: int
    num_nodes: int


def data_parallel_size(config: Config) -> int:
    """Return the data-parallel size that a configuration leads to; see `Launch`."""
    found = devices(config)
    if config.strategy in STRATEGIES and STRATEGIES[config.strategy].is_pipeline:
        return 1
    shared = tensor_parallel_size(config, config.strategy, found.per_node, found.num_nodes)
    return max(found.per_node * found.num_nodes // (shared * config.context_parallel_size), 1)


def tensor_parallel_size(config: Config, strategy: str, per_node: int, num_nodes: int) -> int:
    """Return the number of devices that share each matrix: as asked for, else the strategy's default; 1 if none do."""
    group = STRATEGIES[strategy].tensor_parallel if strategy in STRATEGIES else None
    if group is None:
        return 1
    return config.tensor_parallel_size or (per_node * num_nodes if group == "all" else per_node)


def devices(config: Config) -> Devices:
    """Find the devices of a run: those that torchrun or srun started processes for, or as asked for, or all.

    Raises:
        UserError: this machine has fewer than asked for, or torchrun or srun started another number.
    """
    asked, num_nodes = config.devices, config.num_nodes
    if under_torchrun():
        asked, num_nodes = _started_by_torchrun(asked)
    elif under_srun():
        asked, num_nodes = _started_by_srun(asked, num_nodes)
    gpus = torch.cuda.device_count()
    if config.accelerator == "gpu" and not gpus:
        raise UserError("--accelerator gpu: this machine has no GPU that torch can use; give --accelerator cpu")
    if config.accelerator == "cpu" or not gpus:
        cores = os.cpu_count() or 1
        most = max(cores, CPU_PROCESSES)
        if asked and asked > most:
            raise UserError(f"--devices {asked}: this machine has {plural(cores, 'CPU core')}; give at most {most}")
        return Devices("cpu", asked or 1, num_nodes)
    if asked and asked > gpus and not have_own_gpus(asked):
        if under_srun():
            tasks_here = f"srun started {plural(asked, 'task')} on each node, and this one sees {plural(gpus, 'GPU')}"
            raise UserError(f"{tasks_here}; give srun --gpus-per-task=1, or --ntasks-per-node={gpus}")
        raise UserError(f"--devices {asked}: this machine has {plural(gpus, 'GPU')}; give at most {gpus}")
    return Devices("gpu", asked or gpus, num_nodes)


def have_own_gpus(tasks: int) -> bool:
    """Whether srun gave each task of a node GPUs that it alone sees, as with --gpus-per-task: its first one counts."""
    return under_srun() and torch.cuda.device_count() < tasks <= int(os.environ.get("SLURM_GPUS_ON_NODE", 0))


def _started_by_torchrun(asked: int | None) -> tuple[int, int]:
    """Return (processes on this node, nodes)."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if asked not in (None, local):
        started = f"torchrun started {plural(local, 'process')} on this node"
        raise UserError(f"--devices {asked}: {started}; give --devices {local}, or leave it out")
    return local, int(os.environ["WORLD_SIZE"]) // local


def _started_by_srun(asked: int | None, asked_nodes: int) -> tuple[int, int]:
    """Return (tasks on each node, nodes)."""
    num_nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    local, uneven = divmod(tasks, num_nodes)
    if uneven:
        uneven_tasks = f"they can't be shared evenly by {num_nodes} nodes"
        raise UserError(f"srun --ntasks {tasks}: {uneven_tasks}; give srun --ntasks-per-node")
    for flag, value, default, started in (("devices", asked, None, local), ("num_nodes", asked_nodes, 1, num_nodes)):
        if value not in (default, started):
            tasks_there = f"srun started {plural(local, 'task')} on each of {plural(num_nodes, 'node')}"
            raise UserError(f"--{flag} {value}: {tasks_there}; give --{flag} {started}, or leave it out")
    return local, num_nodes
