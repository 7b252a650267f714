"""Memory that a run takes on each device, by part; and the strategy and micro-batch that fit.

Weights, gradients and optimizer states are counted exactly, from shapes. Activations come from a forward pass without
contents (`activation_memory`), logits from its head. All parts are summed as if they were there at once, as they are in
the backward pass of every micro-batch but a step's first.

Not counted: the CUDA context and NCCL's buffers (about 1.5 GB of a GPU), the allocator's fragments, and what kernels
need while they run. `ROOM` leaves memory for these.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from transformers import PreTrainedModel

from sslm.config import Config, FsdpConfig
from sslm.models.blocks import blocks
from sslm.parallel.expert_parallel import experts_of
from sslm.parallel.launch import Launch
from sslm.parallel.planning.kept import Activations
from sslm.parallel.planning.machines import Machine
from sslm.parallel.recompute import Recompute
from sslm.parallel.tensor_parallel import STYLES, planned
from sslm.runs.checkpoints.optimizer_states import hidden_matrices, numel_of_part, states_of
from sslm.system.terminal import bytes_in_words

ROOM = 0.9
"""Largest fraction of a device's memory to plan for."""
COMFORT = 0.7
"""Largest fraction of a device's memory that DDP may take, with one sequence at a time, to be chosen by `auto`."""
ZERO_BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at a time; it allocates memory for them in advance."""
WORKSPACES = 2 * 32 * 2**20
"""Bytes that torch gives cuBLAS to work in: 32 MiB to the thread of forward passes, and to that of backward passes.

That is on GPUs since Hopper, 8 MiB on those before (aten/src/ATen/cuda/CublasHandlePool.cpp).
"""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    teacher: float = 0
    """Weights of the model that is learnt from, and what is gathered of them for a pass if they are sharded."""
    activations: float = 0
    logits: float = 0
    """Logits at scored places and what the loss makes of them, in fp32, with their gradients."""
    transient: float = 0
    """Weights gathered for the blocks at work, gradients being reduced, and what a GPU's matmuls work in."""
    host: float = 0
    """What each device offloads to the host's memory; not part of the total."""

    @property
    def parts(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "host"}

    @property
    def total(self) -> float:
        return sum(self.parts.values())


class Sizes(NamedTuple):
    """Numbers in a model's weights, tied ones once."""

    whole: int
    """On a device that holds all weights (with tensor parallelism: its part of each matrix)."""
    sharded: int
    """On a device that holds a shard of each weight, cut along its first dimension."""
    root: int
    """Outside the blocks."""
    block: int
    """In the largest block."""
    trained: int
    """As `whole`, of those weights alone that are trained."""
    trained_sharded: int
    """As `sharded`, of those weights alone that are trained."""
    trained_unit: int
    """In what of `root` and the largest block has more that is trained."""
    states: int
    """Bytes, not numbers: optimizer states of what is trained, on a device that holds them as `whole`."""
    states_sharded: int
    """The same on a device that holds them as `sharded`."""


def sizes(
    model: PreTrainedModel,
    shards: int = 1,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    optimizer: str = "adamw",
) -> Sizes:
    """Count the numbers in a model's weights.

    Args:
        model: may be on the meta device.
        shards: devices among which each weight is cut.
        tensor_parallel: devices that share each matrix.
        expert_parallel: devices that share each block's experts, whose rows are cut, too.
        optimizer: whose states are counted.
    """
    hidden = hidden_matrices(model)
    shared = {name for name, style in planned(model).items() if style in STYLES and "replicated" not in style}
    of_experts = {id(p) for module in experts_of(model) for p in module.parameters() if expert_parallel > 1}
    block_of = {id(p): number for number, block in enumerate(blocks(model)) for p in block.parameters()}
    whole = sharded = trained = trained_sharded = states = states_sharded = 0
    units: dict[int, int] = {-1: 0}
    trained_units: dict[int, int] = {-1: 0}
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        numel, divisor = parameter.numel(), 1
        cuts: tuple[int, ...] = (shards,)
        if id(parameter) in of_experts:
            numel, cuts = numel // expert_parallel, (expert_parallel, shards // expert_parallel)
        if tensor_parallel > 1 and name.rpartition(".")[0] in shared:
            numel, divisor = numel // tensor_parallel, tensor_parallel
        whole += numel
        shard, unit = numel_of_part(parameter.shape, *cuts) // divisor, block_of.get(id(parameter), -1)
        sharded += shard
        units[unit] = units.get(unit, 0) + numel
        if parameter.requires_grad:
            trained, trained_sharded = trained + numel, trained_sharded + shard
            trained_units[unit] = trained_units.get(unit, 0) + numel
            kept = states_of(optimizer, parameter, parameter in hidden).values()
            states += sum(state.nbytes(*cuts[:-1]) for state in kept) // divisor
            states_sharded += sum(state.nbytes(*cuts) for state in kept) // divisor
    root = units.pop(-1)
    block = max(units.values(), default=0)
    unit = max(trained_units.values())
    return Sizes(whole, sharded, root, block, trained, trained_sharded, unit, states, states_sharded)


def holds_16_bits(launch: Launch) -> bool:
    """Whether weights are kept in 16 bits: with bf16-true, and with DeepSpeed's loss scaling."""
    return launch.precision == "bf16-true" or (launch.precision == "16-mixed" and launch.traits.zero_stage > 0)


def gathers_16_bits(launch: Launch) -> bool:
    """Whether forward passes get weights in 16 bits, whatever dtype they are kept in."""
    return holds_16_bits(launch) or (launch.traits.shards_weights and launch.autocasts_to_bf16)


def static_memory(sizes: Sizes, launch: Launch, config: Config, num_micro_batches: int) -> Memory:
    """Count weights, gradients, optimizer states and buffers; nothing that depends on a batch.

    Weights that aren't trained have neither gradients nor optimizer states. Bytes a parameter: weights and gradients 4
    (in 16 bits: 2); the optimizer's states as `states_of` has them (AdamW's moments 8, in fp32); DeepSpeed's copy of
    the weights in fp32 4, whatever the weights' dtype (Rajbhandari et al. 2020, arXiv:1910.02054); an average of the
    weights 4. FSDP2 shards all of these, but gradients that are reduced once a step are whole until then
    (`fsdp.reduce_gradients`). ZeRO shards the optimizer in stage 1, gradients too in stage 2, weights too in stage 3.
    """
    stage, is_sharded = launch.traits.zero_stage, launch.traits.shards_weights
    width = 2 if holds_16_bits(launch) else 4
    waits = config.fsdp.reduce_gradients == "step" and num_micro_batches > 1
    weights = width * (sizes.sharded if is_sharded or stage == 3 else sizes.whole)
    gradients = width * (sizes.trained_sharded if is_sharded or stage >= 2 else sizes.trained)
    if is_sharded and waits:
        gradients = 4 * sizes.trained  # FSDP2 sums them in the type in which it reduces them
    averages = 0 if config.optim.average_decay is None else 4
    optimizer = sizes.states_sharded if is_sharded or stage else sizes.states
    optimizer += 4 * sizes.trained_sharded if stage else 0
    optimizer += averages * (sizes.sharded if is_sharded else sizes.whole)
    transient = float(WORKSPACES) if launch.accelerator == "gpu" else 0.0
    if is_sharded:
        at_work = _gathered(sizes, config.fsdp)
        transient += (2 if gathers_16_bits(launch) else width) * at_work + 4 * (1 if waits else 2) * sizes.trained_unit
    elif stage:
        # on CPUs memory that is not used is not there
        bucket = ZERO_BUCKET if launch.accelerator == "gpu" else min(ZERO_BUCKET, sizes.whole)
        transient += width * (bucket + (sizes.root + 2 * sizes.block if stage == 3 else 0))
    host = 0.0
    if stage and config.deepspeed.offload_optimizer:
        optimizer, host = 0, optimizer
    if stage == 3 and config.deepspeed.offload_parameters:
        weights, host = 0, host + weights
    if not config.checkpoint.sync:  # what is written while training goes on, each device's share
        copied = (4 if stage else width) + (4 if config.optim.averages else 0)
        copy = (copied * sizes.whole + sizes.states) / launch.world
        host, transient = (host, transient + copy) if launch.accelerator == "cpu" else (host + copy, transient)
    return Memory(weights, gradients, optimizer, transient=transient, host=host)


def teacher_memory(model: PreTrainedModel, bytes_per_number: int, launch: Launch, shards: int) -> float:
    """Count the weights of a model that is not trained: whole, or a shard and the blocks that are gathered at a time.

    Args:
        model: may be on the meta device.
        bytes_per_number: of the dtype in which it computes.
        shards: devices among which each weight is cut, if the strategy shards weights.
    """
    numbers = sizes(model, shards)
    gathered = min(numbers.root + 2 * numbers.block, numbers.whole)  # FSDP2 gathers the next block meanwhile
    return bytes_per_number * (numbers.sharded + gathered if launch.traits.shards_weights else numbers.whole)


def _gathered(sizes: Sizes, fsdp: FsdpConfig) -> float:
    """Count the numbers in gathered weights: of the block at work and those ahead, and what is kept of the others."""
    if fsdp.reshard_after_forward is False:
        return sizes.whole
    kept = 0.0 if fsdp.reshard_after_forward is True else sizes.whole / fsdp.reshard_after_forward
    return min(sizes.root + (1 + (fsdp.prefetch or 1)) * sizes.block + kept, sizes.whole)


def batch_memory(
    activations: Activations,
    micro_batch_size: int,
    recomputation: Recompute,
    compiled: bool,
    scored_share: float,
    logits: int,
) -> Memory:
    """Count activations and logits of one micro-batch.

    Args:
        recomputation: selective keeps the outputs of matmuls and attention, full a block's input alone; a budget lies
            between full and none. One block's activations are computed again at a time, when the logits are gone.
        compiled: whether blocks are compiled.
        scored_share: fraction of the places that the head works on, if it gets the scored places alone.
        logits: bytes of logits and their gradients, beside what the head keeps.
    """
    kept = activations.of(micro_batch_size)
    head = kept.head * (scored_share if activations.has_head else 1.0) + logits
    again = max(kept.largest - head, 0)
    checkpointed = kept.outside + kept.inputs + kept.repeated
    everything = kept.outside + kept.inputs + kept.inside
    selected = checkpointed + kept.products
    chosen = recomputation.budget * (min(selected, everything) - checkpointed)
    amount = {
        "none": checkpointed + kept.compiled if compiled else everything,
        "selective": selected + again,
        "full": checkpointed + again,
        "budget": checkpointed + chosen + (1 - recomputation.budget) * again,
    }[recomputation.kind]
    return Memory(activations=min(amount, everything), logits=head)


def largest_micro_batch(rows: int, available: float, total: Callable[[int], float]) -> int | None:
    """Return the largest micro-batch that fits and divides a device's rows, or None if not even one sequence fits.

    Args:
        rows: sequences of the global batch that a device works on.
        available: bytes of a device.
        total: size of a micro-batch -> bytes that a run with it takes.

    >>> largest_micro_batch(12, 100, lambda size: 10 + 20 * size)
    4
    """
    fitting = (size for size in range(rows, 0, -1) if rows % size == 0 and total(size) <= ROOM * available)
    return next(fitting, None)


def choose_strategy(total: Callable[[str], float], machine: Machine) -> tuple[str, str]:
    """Return the strategy that communicates least of those that fit, and why, in words.

    Args:
        total: strategy -> bytes that it takes on a device, with micro-batches of one sequence.

    >>> from sslm.parallel.planning.machines import named
    >>> choose_strategy(lambda name: {"ddp": 100e9, "fsdp": 14e9}[name], named("h100:8"))
    ('fsdp', 'ddp takes 93.1 GiB of the 79.2 GiB of each H100, fsdp 13.0 GiB')
    """
    if machine.world == 1:
        return "single", "one device"
    if not machine.is_gpu:  # of free memory each process would see another amount
        return "ddp", "the default on CPUs"
    has = f"of the {bytes_in_words(machine.memory)} of each {machine.device}"
    if total("ddp") <= COMFORT * machine.memory:
        return "ddp", f"it takes {bytes_in_words(total('ddp'))} {has}, in micro-batches of one sequence"
    too_much = f"ddp takes {bytes_in_words(total('ddp'))} {has}"
    if machine.num_nodes > 1 and total("hsdp") <= COMFORT * machine.memory:
        return "hsdp", f"{too_much}, hsdp {bytes_in_words(total('hsdp'))}, as the devices of a node share the weights"
    return "fsdp", f"{too_much}, fsdp {bytes_in_words(total('fsdp'))}"
