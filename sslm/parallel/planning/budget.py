"""What a run needs of a machine, whatever the strategy: asked before any process is started, and by `sslm plan`.

budget, launch = plan_launch(config, model, data, machine)
micro_batch_size = budget.micro_batch_size(launch)
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sslm.config import Config
from sslm.data.stream.recipe import Examples
from sslm.parallel.launch import STRATEGIES, data_parallel_size, devices, tensor_parallel_size
from sslm.parallel.planning.machines import Machine, here
from sslm.parallel.planning.memory import (
    ROOM,
    Memory,
    batch_memory,
    choose_strategy,
    gathers_16_bits,
    holds_16_bits,
    largest_micro_batch,
    sizes,
    static_memory,
)
from sslm.parallel.recompute import Recompute, parse_recompute
from sslm.system.errors import UserError
from sslm.system.terminal import gib

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sslm.data.module import DataModule
    from sslm.parallel.launch import Launch
    from sslm.parallel.planning.activation_memory import Activations

ENOUGH_TOKENS = 4096
"""A micro-batch of so many tokens keeps a device busy: more gains little."""


def shapes_of(data: "DataModule") -> dict[str, tuple[int, ...]]:
    """Of one row of each of a batch's tensors; nothing of the corpus is read."""
    from sslm.data.stream.packing import Packed

    one = np.zeros(1, np.int64)
    tokens = np.zeros((1, data.window_len), np.int64)
    is_packed = isinstance(data.train_stream.sources[0].windows, Packed)
    examples = Examples(
        tokens,
        one,
        one,
        one,
        one + data.window_len if is_packed else None,
        tokens.astype(np.int32) if data.config.document_mask else None,
    )
    batch = data.recipe.make_batch(examples, data.vocabulary, data.seed)
    return {name: array.shape[1:] for name, array in batch.items()}


def check_batch(config: Config, shares: int) -> None:
    """Raises:
    UserError: the batch doesn't divide into shares of micro-batches; it says what would.
    """
    if config.batch_size % shares:
        raise UserError(
            f"--batch_size {config.batch_size}: can't be shared by {shares} devices; give a multiple of {shares}, such as "
            f"{-(-config.batch_size // shares) * shares}"
        )
    share, micro = config.batch_size // shares, config.micro_batch_size
    if isinstance(micro, int) and share % micro:
        divisors = [str(n) for n in range(1, share + 1) if share % n == 0]
        raise UserError(
            f"--micro_batch_size {micro}: does not divide a device's {share} sequences (batch_size {config.batch_size} / "
            f"{shares} devices); what would: {', '.join(divisors)}"
        )


def plan_launch(
    config: Config, model: "PreTrainedModel", data: "DataModule", machine: Machine | None = None
) -> "tuple[Budget, Launch]":
    """What the run takes, and how it is launched (`auto` settled).

    Args:
        machine: what it runs on; default: this machine.

    Raises:
        UserError: the model can't be trained so on this machine, or batches don't divide; it says what would.
    """
    budget = Budget(config, model, shapes_of(data), data.max_scored, machine or here(*devices(config)))
    strategy, why = budget.choose_strategy() if config.strategy == "auto" else (config.strategy, "as asked")
    launch = replace(budget.launch(strategy), why=why)
    budget.check(launch)
    return budget, launch


@dataclass(frozen=True)
class Budget:
    """A run's memory on a machine, whatever the strategy.

    Args:
        model: on the meta device.
        shapes: of one row of each of the batch's tensors.
        max_scored: at most so many places of a row are scored; None: all.
    """

    config: Config
    model: "PreTrainedModel"
    shapes: Mapping[str, tuple[int, ...]]
    max_scored: int | None
    machine: Machine
    measured: "dict[Any, Activations]" = field(default_factory=dict, compare=False, repr=False)

    @property
    def recomputation(self) -> Recompute:
        return parse_recompute(self.config.activation_checkpointing, compile_blocks=self.config.compile)

    def launch(self, strategy: str) -> "Launch":
        """How a strategy runs on the machine."""
        from sslm.parallel.launch import Launch

        config, machine = self.config, self.machine
        precision = config.precision if config.precision != "auto" else machine.precision
        if config.precision == "auto" and precision == "16-mixed" and not STRATEGIES[strategy].scales_losses:
            precision = "32"  # these have no loss scaling
        replicas = (config.fsdp.replicas or machine.num_nodes) if STRATEGIES[strategy].replicates_shards else 1
        size = tensor_parallel_size(config, strategy, machine.devices, machine.num_nodes)
        kind = "gpu" if machine.is_gpu else "cpu"
        return Launch(kind, machine.devices, machine.num_nodes, strategy, precision, replicas, size)

    def rows_per_rank(self, launch: "Launch") -> int:
        """Sequences of the batch that each device works on (or the devices together that share each matrix)."""
        return self.config.batch_size // launch.data_parallel_size

    def check(self, launch: "Launch") -> None:
        """Raises:
        UserError: the model can't be trained so, or batches don't divide; it says what would.
        """
        from sslm.parallel.strategies import check_strategy

        check_strategy(self.config, launch, self.model)
        if launch.precision == "fp8" and not self.machine.has_fp8:
            raise UserError(
                f"--precision fp8: needs a GPU that multiplies in 8 bits (L4, RTX 4090, H100 and later), not "
                f"{self.machine.device}; give --precision bf16-mixed"
            )
        check_batch(self.config, launch.data_parallel_size)

    def memory(self, launch: "Launch", micro_batch_size: int, recomputation: Recompute | None = None) -> Memory:
        data_parallel = launch.world // launch.tensor_parallel_size
        counted = sizes(self.model, max(data_parallel // launch.replicas, 1), launch.tensor_parallel_size)
        fixed = static_memory(counted, launch, self.config, -(-self.rows_per_rank(launch) // micro_batch_size))
        length = self.shapes["labels"][0]
        scored = min(self.max_scored or length, length)
        batch = batch_memory(
            self.activations(launch),
            micro_batch_size,
            recomputation or self.recomputation,
            self.config.compile,
            scored / length,
            scored * self.model.config.vocab_size,
        )
        return replace(fixed, activations=batch.activations, logits=batch.logits)

    def activations(self, launch: "Launch") -> "Activations":
        """Measured once for all strategies whose forward passes are alike."""
        from sslm.parallel.planning import activation_memory

        in_16_bits = {"32": None, "16-mixed": torch.float16}.get(launch.precision, torch.bfloat16)
        weights = in_16_bits if gathers_16_bits(launch) and in_16_bits else torch.float32
        key = (in_16_bits, weights, holds_16_bits(launch), launch.tensor_parallel_size)
        if key not in self.measured:
            robust = self.config.robust
            try:
                self.measured[key] = activation_memory.measure(
                    self.model,
                    self.shapes,
                    on_gpu=self.machine.is_gpu,
                    weights=weights,
                    autocast=None if holds_16_bits(launch) else in_16_bits,
                    tensor_parallel=launch.tensor_parallel_size,
                    label_smoothing=robust.label_smoothing,
                    z_loss=robust.z_loss,
                    embedding_noise=robust.embedding_noise,
                )
            except Exception:  # each architecture has its own way to look at its tensors' contents
                self.measured[key] = activation_memory.by_formula(
                    self.model, self.shapes, bytes_per_number=2 if in_16_bits else 4
                )
        return self.measured[key]

    def largest_micro_batch(self, launch: "Launch", recomputation: Recompute | None = None) -> int | None:
        return largest_micro_batch(
            self.rows_per_rank(launch), self.machine.memory, lambda size: self.memory(launch, size, recomputation).total
        )

    def choose_strategy(self) -> tuple[str, str]:
        """(strategy, why), for --strategy auto."""
        return choose_strategy(lambda name: self.memory(self.launch(name), 1).total, self.machine)

    def chosen_size(self, launch: "Launch") -> int:
        """Of micro-batches, as asked for; `auto`: the largest that fits with room for what isn't counted, or 1."""
        asked = self.config.micro_batch_size
        return (self.largest_micro_batch(launch) or 1) if asked == "auto" else asked or self.rows_per_rank(launch)

    def micro_batch_size(self, launch: "Launch") -> int:
        """The chosen size, seen to fit.

        Raises:
            UserError: it can't fit: by how much, and what would.
        """
        size, has = self.chosen_size(launch), self.machine.memory
        memory = self.memory(launch, size)
        if memory.total > has:
            raise UserError(
                f"--strategy {launch.strategy}: with micro-batches of {size} each device needs {gib(memory.total)} of memory, "
                f"{gib(memory.total - has)} more than the {gib(has)} of each {self.machine.device}; {self._advice(launch)}"
            )
        return size

    def is_narrow(self, launch: "Launch", micro_batch_size: int) -> bool:
        """Whether it leaves less room than should be, for what isn't counted."""
        return self.memory(launch, micro_batch_size).total > ROOM * self.machine.memory

    def _advice(self, asked: "Launch") -> str:
        if would := [p.flags(self.config) for p in self.proposals(asked.strategy) if p.fits]:
            typed = [" ".join(f"--{name} {value}" for name, value in flags.items()) for flags in would[:2]]
            return f"what would fit: {', or '.join(typed)}"
        world = self.machine.world
        for more in (2, 4, 8, 16, 32, 64, 128):
            larger = replace(
                self._reducing("micro_batch"), machine=replace(self.machine, num_nodes=self.machine.num_nodes * more)
            )
            launch = larger.launch("fsdp")
            if not larger._can("fsdp"):
                break
            if larger.memory(launch, 1, Recompute("full")).total <= ROOM * self.machine.memory:
                return (
                    f"nothing would on {world} of them; {world * more} would do, with --strategy fsdp --micro_batch_size 1 "
                    f"--activation_checkpointing full --fsdp.reduce_gradients micro_batch"
                )
        return "nothing would, on any number of them: take a smaller model, a shorter --seq_len, or a larger --batch_size on more devices"

    def proposals(self, strategy: str) -> list["Proposal"]:
        """The strategy and others that may take less, each with the largest micro-batch that fits, and with no more recomputation
        and communication than that needs."""
        sharing = ("ddp", "hsdp", "fsdp") if self.machine.world > 1 else ()
        return [
            self._proposal(name) for name in dict.fromkeys([strategy, *sharing]) if name == strategy or self._can(name)
        ]

    def _can(self, strategy: str) -> bool:
        """Whether it would not be refused, memory aside."""
        try:
            self.check(self.launch(strategy))
        except UserError:
            return False
        return True

    def _proposal(self, strategy: str) -> "Proposal":
        launch, seq_len = self.launch(strategy), self.config.seq_len
        enough = min(self.rows_per_rank(launch), math.ceil(ENOUGH_TOKENS / seq_len))
        best: Proposal | None = None
        for again in (Recompute("none"), Recompute("selective"), Recompute("full")):
            for reduced in (
                ("step", "micro_batch") if launch.traits.shards_weights else (self.config.fsdp.reduce_gradients,)
            ):
                budget = self._reducing(reduced)
                size = budget.largest_micro_batch(launch, again)
                memory = budget.memory(launch, size or 1, again)
                this = Proposal(strategy, size or 1, again.kind, reduced, memory, fits=size is not None)
                if best is None or this.sequences > best.sequences:
                    best = this
                if best.sequences >= enough:
                    return best
        assert best is not None
        return best

    def _reducing(self, when: Any) -> "Budget":
        return replace(self, config=replace(self.config, fsdp=replace(self.config.fsdp, reduce_gradients=when)))


class Proposal(NamedTuple):
    """A way to run."""

    strategy: str
    micro_batch_size: int
    activation_checkpointing: str
    reduce_gradients: str
    memory: Memory
    fits: bool

    @property
    def sequences(self) -> int:
        """At a time; 0 where not even one fits."""
        return self.micro_batch_size if self.fits else 0

    def flags(self, config: Config) -> dict[str, Any]:
        """What to type, where the run was asked for otherwise."""
        flags = {
            "strategy": (self.strategy, config.strategy),
            "micro_batch_size": (self.micro_batch_size, config.micro_batch_size),
            "activation_checkpointing": (self.activation_checkpointing, config.activation_checkpointing),
            "fsdp.reduce_gradients": (self.reduce_gradients, config.fsdp.reduce_gradients),
        }
        return {name: wanted for name, (wanted, asked) in flags.items() if wanted != asked}


def check_processes(config: Config) -> None:
    """Raises:
    UserError: more loader processes than make sense, or a batch that the devices can't share; it says what would do.
    """
    check_batch(config, data_parallel_size(config))
    if config.data.num_workers > (most := 4 * (os.cpu_count() or 1)):
        raise UserError(
            f"--data.num_workers {config.data.num_workers}: this machine has {os.cpu_count()} CPU cores; give at most {most}"
        )
