"""A run's memory on a machine, whatever the strategy: planned before any process is started, and shown by `sslm plan`.

budget, launch = plan_launch(config, model, data, machine)
micro_batch_size = budget.micro_batch_size(launch)
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from sslm.config import Config
from sslm.data.stream.packing import Packed
from sslm.data.stream.recipe import Examples
from sslm.models.attention import BY_OFFSETS, Surroundings, check_attention, choose_attention, masks_because
from sslm.models.linear_cross_entropy import are_few, tokens_at_a_time
from sslm.models.linear_head import ends_in_linear, outputs_to_logits
from sslm.parallel.checks import check_batch, check_strategy
from sslm.parallel.compilation import check_compiled, choose_compiled
from sslm.parallel.launch import STRATEGIES, Compiled, Launch, devices, tensor_parallel_size
from sslm.parallel.pipeline import stages_of
from sslm.parallel.planning.activation_formula import by_formula
from sslm.parallel.planning.activation_memory import measure
from sslm.parallel.planning.kept import Activations
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
    teacher_memory,
)
from sslm.parallel.recompute import Recompute, parse_recompute
from sslm.parallel.sequence_parallel import suits_places
from sslm.system.errors import UserError
from sslm.system.terminal import bytes_in_words

if TYPE_CHECKING:
    from sslm.data.module import DataModule  # brings Lightning

MEASURED: dict[str, Activations] = {}
"""What `Budget.activations` has measured in this process, by model, shapes and how it is computed."""
ENOUGH_TOKENS = 4096
"""Tokens of a micro-batch that keep a device busy; more gain little."""


def plan_launch(
    config: Config,
    model: PreTrainedModel,
    data: "DataModule",
    machine: Machine | None = None,
    teacher: PreTrainedModel | None = None,
) -> "tuple[Budget, Launch]":
    """Plan a run's memory and its launch, with `auto` settled.

    Args:
        machine: what the run is to train on, or None for this machine.
        teacher: what is asked at each micro-batch; None if nothing is.

    Raises:
        UserError: the model can't be trained so on this machine, or batches don't divide; the message says what would.
    """
    is_labelled = data.recipe.task(config.window_tokens) is not None
    machine = machine or here(*devices(config))
    budget = Budget(config, model, row_shapes(data), data.max_scored, machine, is_labelled, teacher)
    strategy, why = budget.choose_strategy() if config.strategy == "auto" else (config.strategy, "as asked")
    launch = replace(budget.launch(strategy), why=why)
    budget.check(launch)
    return budget, launch


_stages = functools.cache(stages_of)


def row_shapes(data: "DataModule", seq_len: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of each of a batch's tensors; nothing of the corpus is read.

    `seq_len` is that of the sequences while they are short, if not of the longest.
    """
    one = np.zeros(1, np.int64)
    window_len = data.window_len if seq_len is None else data.recipe.window_len(seq_len, data.vocabulary)
    tokens = np.zeros((1, window_len), np.int64)
    is_packed = isinstance(data.train_stream.sources[0].windows, Packed)
    lengths = one + window_len if is_packed else None
    documents = tokens.astype(np.int32) if data.config.document_mask else None
    batch = data.recipe.make_batch(Examples(tokens, one, one, one, lengths, documents), data.vocabulary, data.seed)
    return {name: array.shape[1:] for name, array in batch.items()}


@dataclass(frozen=True)
class Budget:
    """A run's memory on a machine, whatever the strategy."""

    config: Config
    model: PreTrainedModel
    """On the meta device."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of one row of each of the batch's tensors."""
    max_scored: int | None
    """Most places of a row that are scored, or None if all are."""
    machine: Machine
    is_labelled: bool = False
    """Whether rows are labelled: micro-batches are then as wide as their longest row, unless shapes are compiled."""
    teacher: PreTrainedModel | None = None
    """What is asked at each micro-batch, perhaps on the meta device."""

    @property
    def recomputation(self) -> Recompute:
        return parse_recompute(self.config.activation_checkpointing)

    def launch(self, strategy: str) -> Launch:
        """Return the launch of a strategy on the machine."""
        config, machine, traits = self.config, self.machine, STRATEGIES[strategy]
        precision = config.precision if config.precision != "auto" else machine.precision
        if config.precision == "auto" and precision == "16-mixed" and not traits.scales_losses:
            precision = "32"
        replicas = (config.fsdp.replicas or machine.num_nodes) if traits.replicates_shards else 1
        size = tensor_parallel_size(config, strategy, machine.devices, machine.num_nodes)
        accelerator = "gpu" if machine.is_gpu else "cpu"
        launch = Launch(accelerator, machine.devices, machine.num_nodes, strategy, precision, replicas, size)
        shared = {name: getattr(config, name) for name in ("context_parallel_size", "expert_parallel_size")}
        launch = replace(launch, **shared, shares_places=size > 1 and suits_places(self.model.config))
        launch = replace(launch, compiled=self._compiled(launch), is_async=config.compile == "async_tp")
        around = self._around_attention(launch)
        attention = config.attention
        if attention == "auto":  # a teacher is compared with what SDPA computes
            attention = "sdpa" if config.distill.attention_weight else choose_attention(self.model, around)
        return replace(launch, attention=attention, masks_because=masks_because(attention, self.model, around))

    def _compiled(self, launch: Launch) -> Compiled:
        if self.config.compile != "auto":
            return "block" if self.config.compile == "async_tp" else self.config.compile
        watches = self.config.distill.hidden_weight or self.config.distill.attention_weight
        if self.is_labelled or watches or not self.machine.has_compiler:
            return "off"
        return choose_compiled(launch, self.model, self.recomputation)

    def _around_attention(self, launch: Launch) -> Surroundings:
        is_ampere = self.machine.precision == "bf16-mixed"  # it brought bf16
        has_documents, in_16_bits = self.config.data.document_mask, not launch.computes_in_fp32
        return Surroundings(
            launch.device_type,
            has_documents,
            self.config.window_tokens,
            in_16_bits,
            is_ampere,
            shares_rows=launch.context_parallel_size > 1,
            is_pipeline=launch.num_stages > 1,
        )

    def check(self, launch: Launch) -> None:
        """Refuse a launch that can't run on the machine, memory aside.

        Raises:
            UserError: the model can't be trained so, or batches don't divide; the message says what would.
        """
        check_strategy(self.config, launch, self.model)
        check_compiled(launch, self.model, self.recomputation)
        check_attention(launch.attention, self.model, self._around_attention(launch))
        if launch.float8 is not None and launch.float8 not in self.machine.float8:
            what = "multiplies in 8 bits (L4, RTX 4090, H100 and later)"
            if launch.float8 == "block":
                what = "multiplies blocks of 8-bit floats with a scale each (B200 and later)"
            other = "fp8-rowwise" if self.machine.float8 else "bf16-mixed"
            raise UserError(
                f"--precision {launch.precision}: needs a GPU that {what}, not {self.machine.device}; "
                f"give --precision {other}"
            )
        if launch.precision == "32-tf32" and self.machine.precision != "bf16-mixed":  # Ampere brought both
            raise UserError(
                f"--precision 32-tf32: needs a GPU from Ampere on (A100, RTX 30 and later), not {self.machine.device}; "
                "give --precision 32"
            )
        check_batch(self.config, launch.data_parallel_size)

    # ------------------------------------------------------------------------------------------------ memory

    def rows_per_rank(self, launch: Launch) -> int:
        """Return the sequences of the global batch that a device works on, or the devices that share each matrix.

        Of batches that grow it is the largest.
        """
        return self.config.batch_ramp.largest // launch.data_parallel_size

    def rows_to_divide(self, launch: Launch) -> int:
        """Return the most sequences of a micro-batch: of batches that grow it divides a device's share of each."""
        return self.config.batch_ramp.common_divisor // launch.data_parallel_size

    def memory(self, launch: Launch, micro_batch_size: int, recomputation: Recompute | None = None) -> Memory:
        """Count the memory of each device, with the run's recomputation if none is given."""
        shards = max(launch.world // launch.tensor_parallel_size // launch.replicas, 1)
        shared = launch.tensor_parallel_size, launch.expert_parallel_size
        parts = _stages(self.model, launch.num_stages) if launch.num_stages > 1 else [self.model]
        of_each = [sizes(part, shards, *shared, optimizer=self.config.optim.name) for part in parts]
        numbers = max(of_each, key=lambda of: of.whole)
        static = static_memory(numbers, launch, self.config, -(-self.rows_per_rank(launch) // micro_batch_size))
        length = self.shapes["labels"][0]
        scored = min(self.max_scored or length, length)
        batch = batch_memory(
            self.activations(launch),
            micro_batch_size,
            recomputation or self.recomputation,
            launch.compiled != "off",
            scored / length,
            self._head_at_work(launch, micro_batch_size * scored),
        )
        if launch.num_stages > 1:  # torch's schedule has room for what comes of each micro-batch, forth and back
            places = 2 * self.rows_per_rank(launch) * length * self.model.config.hidden_size
            static = replace(static, transient=static.transient + (2 if launch.holds_bf16 else 4) * places)
        cut = launch.context_parallel_size
        teacher = 0 if self.teacher is None else self._of_teacher(self.teacher, launch, shards)
        return replace(static, teacher=teacher, activations=batch.activations / cut, logits=batch.logits / cut)

    def _of_teacher(self, teacher: PreTrainedModel, launch: Launch, shards: int) -> float:
        bytes_per_number = {"32": 4, "bf16": 2}.get(self.config.distill.precision, teacher.dtype.itemsize)
        return teacher_memory(teacher, bytes_per_number, launch, shards)

    def _head_at_work(self, launch: Launch, num_places: int) -> int:
        """Count what logits and their gradients take beside what the head keeps, in bytes.

        Of all places' logits there are two gradients in fp32 at once. Of some places' there is one, in 16 bits also a
        copy of it, of the weight, and of the weight's gradient; a soft cap has a derivative. If few logits are made at
        once after all, what the head keeps of them is not in its measured part.
        """
        vocab_size: int = self.model.config.vocab_size
        if not (launch.chunks_loss and ends_in_linear(self.model)):
            return 8 * num_places * vocab_size
        num_classes = vocab_size // launch.tensor_parallel_size
        if launch.tensor_parallel_size == 1 and are_few(num_places, num_classes, launch.device_type):
            return 12 * num_places * vocab_size
        logits = num_classes * tokens_at_a_time(num_places, num_classes, launch.device_type)
        of_cap = 4 * logits if outputs_to_logits(self.model.config)[1] is not None else 0
        layer: Any = self.model.get_output_embeddings()
        return of_cap + (4 * logits if launch.computes_in_fp32 else 6 * logits + 4 * num_classes * layer.in_features)

    def activations(self, launch: Launch) -> Activations:
        """Measure activations, once in a process for all launches whose forward passes are alike."""
        fp16_or_bf16 = torch.float16 if launch.precision == "16-mixed" else torch.bfloat16
        dtype = torch.float32 if launch.computes_in_fp32 else fp16_or_bf16
        weights = dtype if gathers_16_bits(launch) else torch.float32
        autocast = None if holds_16_bits(launch) or dtype == torch.float32 else dtype
        how: dict[str, Any] = {"weights": weights, "autocast": autocast}
        how |= {"chunks_loss": launch.chunks_loss}
        how |= {"on_gpu": self.machine.is_gpu, "tensor_parallel": launch.tensor_parallel_size}
        how |= {"shares_places": launch.shares_places}
        how |= {name: getattr(self.config.robust, name) for name in ("label_smoothing", "z_loss", "embedding_noise")}
        shapes = self.shapes
        if launch.attention in BY_OFFSETS:  # no mask is made
            shapes = {name: shape for name, shape in shapes.items() if name != "segment_ids"}
        trained = [(name, weight.shape) for name, weight in self.model.named_parameters() if weight.requires_grad]
        key = repr((type(self.model), self.model.config.to_json_string(), trained, shapes, how))
        if key not in MEASURED:
            try:
                MEASURED[key] = measure(self.model, shapes, **how)
            except Exception:  # each architecture has its own way to look at its tensors' contents
                casts = autocast is not None and weights != autocast
                MEASURED[key] = by_formula(self.model, shapes, bytes_per_number=dtype.itemsize, casts=casts)
        return MEASURED[key]

    # ------------------------------------------------------------------------------------------------ what fits

    def choose_strategy(self) -> tuple[str, str]:
        """Return the strategy that `auto` means, and why."""
        return choose_strategy(lambda name: self.memory(self.launch(name), 1).total, self.machine)

    def largest_micro_batch(self, launch: Launch, recomputation: Recompute | None = None) -> int | None:
        """Return the largest micro-batch size that fits, or None if none does."""
        most = self._most_rows(launch)
        return largest_micro_batch(
            self.rows_to_divide(launch),
            self.machine.memory,
            lambda size: self.memory(launch, size, recomputation).total if size <= most else math.inf,
        )

    def _most_rows(self, launch: Launch) -> int:
        """Return the sequences of a micro-batch at most: there are to be as many micro-batches as stages."""
        rows, smallest = self.rows_to_divide(launch), self.config.batch_ramp.numbers[0] // launch.data_parallel_size
        most = min(smallest // launch.num_stages, rows)
        return next(size for size in range(most, 0, -1) if rows % size == 0)

    def chosen_size(self, launch: Launch) -> int:
        """Return the micro-batch size as asked for; for `auto` the largest that fits, or 1 if none does."""
        asked = self.config.micro_batch_size
        return (self.largest_micro_batch(launch) or 1) if asked == "auto" else asked or self._most_rows(launch)

    def micro_batch_size(self, launch: Launch) -> int:
        """Return the chosen micro-batch size if it fits.

        Raises:
            UserError: it can't fit; the message says by how much, and what would.
        """
        size, available = self.chosen_size(launch), self.machine.memory
        total = self.memory(launch, size).total
        if total > available:
            raise UserError(
                f"--strategy {launch.strategy}: with micro-batches of {size} each device needs {bytes_in_words(total)} "
                f"of memory, {bytes_in_words(total - available)} more than the {bytes_in_words(available)} of each "
                f"{self.machine.device}; {self._advice(launch)}"
            )
        return size

    def is_narrow(self, launch: Launch, micro_batch_size: int) -> bool:
        """Whether less memory is left than what isn't counted may take."""
        return self.memory(launch, micro_batch_size).total > ROOM * self.machine.memory

    def _advice(self, launch: Launch) -> str:
        """Say what would fit, if this launch doesn't."""
        if flags := [p.flags(self.config) for p in self.proposals(launch.strategy) if p.fits]:
            typed = [" ".join(f"--{name} {value}" for name, value in changed.items()) for changed in flags[:2]]
            return f"what would fit: {', or '.join(typed)}"
        for times in (2, 4, 8, 16, 32, 64, 128):
            machine = replace(self.machine, num_nodes=self.machine.num_nodes * times)
            larger = replace(self._reducing("micro_batch"), machine=machine)
            if not larger._runs("fsdp"):
                break
            if larger.memory(larger.launch("fsdp"), 1, Recompute("full")).total <= ROOM * self.machine.memory:
                return (
                    f"nothing would on {self.machine.world} of them; {machine.world} would do, with --strategy fsdp "
                    "--micro_batch_size 1 --activation_checkpointing full --fsdp.reduce_gradients micro_batch"
                )
        return (
            "nothing would, on any number of them: take a smaller model, a shorter --seq_len, or a larger --batch_size "
            "on more devices"
        )

    # ------------------------------------------------------------------------------------------------ proposals

    def proposals(self, strategy: str) -> "list[Proposal]":
        """Propose the strategy and others that may take less, each with the largest micro-batch that fits.

        Each has no more recomputation and communication than that needs.
        """
        others = ("ddp", "hsdp", "fsdp") if self.machine.world > 1 else ()
        return [self._proposal(strategy), *(self._proposal(n) for n in others if n != strategy and self._runs(n))]

    def _runs(self, strategy: str) -> bool:
        """Whether a strategy would not be refused, memory aside."""
        try:
            self.check(self.launch(strategy))
        except UserError:
            return False
        return True

    def _proposal(self, strategy: str) -> "Proposal":
        launch = self.launch(strategy)
        enough = min(self.rows_to_divide(launch), math.ceil(ENOUGH_TOKENS / self.config.window_tokens))
        recomputations = (Recompute("none"), Recompute("selective"), Recompute("full"))
        reductions = ("step", "micro_batch") if launch.traits.shards_weights else (self.config.fsdp.reduce_gradients,)
        tried: list[Proposal] = []
        for again, reduced in product(recomputations, reductions):
            budget = self._reducing(reduced)
            size = budget.largest_micro_batch(launch, again)
            memory = budget.memory(launch, size or 1, again)
            tried.append(Proposal(strategy, size or 1, again.kind, reduced, memory, fits=size is not None))
            if tried[-1].sequences >= enough:
                break
        return max(tried, key=lambda proposal: proposal.sequences)

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
        """Sequences at a time, or 0 if not even one fits."""
        return self.micro_batch_size if self.fits else 0

    def flags(self, config: Config) -> dict[str, Any]:
        """Return the flags to type, those in which this way differs from `config`."""
        flags = {
            "strategy": (self.strategy, config.strategy),
            "micro_batch_size": (self.micro_batch_size, config.micro_batch_size),
            "activation_checkpointing": (self.activation_checkpointing, config.activation_checkpointing),
            "fsdp.reduce_gradients": (self.reduce_gradients, config.fsdp.reduce_gradients),
        }
        return {name: wanted for name, (wanted, asked) in flags.items() if wanted != asked}
