"""Expected tokens per second of a run: FLOPs per token, a device's peak rate, and the fraction that others reached.

It is an estimate: waits for the disk and short sequences are not in it.
"""

import math
from typing import NamedTuple

import torch

from sslm.models.blocks import blocks
from sslm.models.flops import CONVENTION, attention_windows, flops_per_sequence
from sslm.parallel.launch import Launch
from sslm.parallel.planning.budget import Budget
from sslm.parallel.planning.machines import peak_flops
from sslm.parallel.planning.step_time import Cluster, Work, step_time
from sslm.system.terminal import count


class Rate(NamedTuple):
    """Model FLOPs utilisation (MFU) to be expected, and why."""

    mfu: float
    why: str


PUBLISHED = {
    "decoder": Rate(0.40, "llm.c reached 40 % with GPT-2 124M on H100s, MPT-1B 43 %"),
    "encoder": Rate(0.25, "ModernBERT-base reached 25 %"),
    "encoder-decoder": Rate(0.31, "nanoT5 reached 31 % on an A100"),
}
"""By kind of model; all of these runs were compiled."""
ON_CPU = Rate(0.30, "runs reach 15 to 50 % of it")
SMALL = 1e9
"""Parameters."""
UNCOMPILED = {True: 0.5, False: 0.8}
"""Factor of the speed without --compile, by whether the model has less than SMALL parameters."""
RECOMPUTED = {"none": 1.0, "selective": 0.95, "full": 0.75, "budget": 0.9}
"""Factor of the speed by kind of recomputation."""
PEAK_SHARE = {"32": 1 / 15, "32-tf32": 1 / 2, "fp8": 1.17, "fp8-rowwise": 0.9}
"""Factor of the bf16 peak by precision: fp32 has no tensor cores; fp8 gained and lost so much with 0.9B parameters."""

ALL = 0.995
"""From here on nothing is said of messages."""


def expected_speed(budget: Budget, launch: Launch) -> tuple[float | None, str]:
    """Return tokens per second over all devices (None if unknown), and what that rests on, in words."""
    machine, model, config, shapes = budget.machine, budget.model, budget.config, budget.shapes
    flops = flops_per_sequence(model, shapes["input_ids"][0], shapes["labels"][0], budget.max_scored)
    flops /= config.window_tokens
    if not machine.is_gpu:
        peak = peak_flops(torch.device("cpu"), torch.float32 if launch.precision == "32" else torch.bfloat16) or 0.0
        why = (
            f"{ON_CPU.mfu:.0%} of the {count(peak)} FLOP/s of a matmul measured just now ({ON_CPU.why}), "
            f"{count(flops)} FLOPs a token: {CONVENTION}"
        )
        return machine.num_nodes * peak * ON_CPU.mfu / flops, why
    if not attention_windows(model.config):
        return None, f"no published run tells what share of a GPU's peak {model.config.model_type} reaches"
    if machine.peak is None:
        return None, f"the peak rate of {machine.device} is not known"
    peak = machine.peak * PEAK_SHARE.get(launch.precision, 1.0)
    rate, slower = PUBLISHED[_kind(budget)], {}
    if launch.compiled == "off":
        slower["without --compile"] = UNCOMPILED[model.num_parameters() < SMALL]
    if (kind := budget.recomputation.kind) != "none":
        slower["with recomputation"] = RECOMPUTED[kind]
    mfu = math.prod([rate.mfu, *slower.values()])
    if (efficiency := _efficiency(budget, launch, flops, mfu)) < ALL:
        slower["waiting for messages"] = round(efficiency, 2)
        mfu *= efficiency
    less = "".join(f"; {name} x {factor:g}" for name, factor in slower.items())
    of_token = f"{count(flops)} FLOPs a token: {CONVENTION}"
    why = f"{mfu:.0%} of each device's {count(peak)} FLOP/s ({rate.why}{less}), {of_token}"
    return machine.world * peak * mfu / flops, why


def _kind(budget: Budget) -> str:
    if budget.model.config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if type(budget.model).__name__.endswith("ForMaskedLM") else "decoder"


def _efficiency(budget: Budget, launch: Launch, flops_per_token: float, mfu: float) -> float:
    """Share of the speed that is left beside messages between devices; 1 if a rate is not known."""
    machine, model, traits = budget.machine, budget.model, launch.traits
    if machine.peak is None or machine.link is None or (machine.network is None and machine.num_nodes > 1):
        return 1.0
    strategy = "hsdp" if traits.replicates_shards else "ddp"
    if (traits.shards_weights and not traits.replicates_shards) or traits.zero_stage == 3:
        strategy = "fsdp"
    size = budget.chosen_size(launch)
    if traits.is_pipeline:  # the first and the last stage wait for each other; what they send is little
        num_micro_batches = budget.rows_per_rank(launch) // size
        return num_micro_batches / (num_micro_batches + launch.num_stages - 1)
    work = Work(
        model.num_parameters(),
        flops_per_token,
        size * budget.config.window_tokens,
        -(-budget.rows_per_rank(launch) // size),
        len(blocks(model)) or 1,
        model.config.hidden_size,
        budget.recomputation.kind == "full",
    )
    cluster = Cluster(machine.peak, machine.link, machine.network or machine.link, machine.devices)
    return step_time(work, cluster, strategy, launch.world, mfu, launch.tensor_parallel_size).efficiency
