"""A simulated step against a real one: the same messages, the same memory, counted by the same recorder."""

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from sslm.cli.parse import parse
from sslm.objectives.choose import choose_model, choose_objective, make_module, open_data
from sslm.parallel.launch import Launch
from sslm.parallel.planning.messages import Message, Messages
from sslm.training.module import Objective
from sslm.training.simulation import Simulation, bytes_here, simulate
from tests.support.processes import train_forked

SHARED_BATCH = ["--micro_batch_size", "1", "--batch_size", "8", "--log_every", "100"]
"""Four micro-batches on each of two ranks, the loss of no step is logged."""


def note_second_step(file: Path) -> None:
    """Write the messages of each rank's second step, and what it holds of weights and optimizer states.

    What hosts agree on beforehand is left out.
    """
    really, agree, messages = Objective.training_step, Objective._agree, Messages()

    def unheard(module: Objective, batch: Any) -> Any:
        messages.times = 0
        try:
            return agree(module, batch)
        finally:
            messages.times = 1

    def training_step(module: Objective, batch: Any, batch_idx: int) -> Any:
        if module.global_step != 1:
            return really(module, batch, batch_idx)
        with messages:
            outputs = really(module, batch, batch_idx)
        optimizer: Any = module.trainer.optimizers[0]
        states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        found = {
            "messages": [[*message, times] for message, times in messages.counted.items()],
            "weights": bytes_here(module.network.parameters()),
            "optimizer": bytes_here(states),
        }
        file.with_suffix(f".{dist.get_rank()}").write_text(json.dumps(found))
        return outputs

    Objective.training_step, Objective._agree = training_step, unheard  # type: ignore[method-assign]


def simulated(flags: list[str], launch: Launch) -> Simulation:
    config = parse(flags)
    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    chosen = choose_model(config, objective, data)
    module = make_module(config, objective, recipe, chosen, None, launch, total_steps=3, micro_batch_size=1)
    shapes = {"input_ids": (config.seq_len,), "labels": (config.seq_len,)}
    return simulate(module, chosen, data, launch, shapes, config.batch_size // launch.data_parallel_size)


LAUNCHES = {
    "fsdp": Launch("cpu", 2, 1, "fsdp", "32"),
    "ddp": Launch("cpu", 2, 1, "ddp", "32"),
    "tp": Launch("cpu", 2, 1, "tp", "32", tensor_parallel_size=2, shares_places=True),
    "fsdp_tp": Launch("cpu", 4, 1, "fsdp_tp", "bf16-mixed", tensor_parallel_size=2, shares_places=True),
    "context": Launch("cpu", 4, 1, "fsdp", "32", context_parallel_size=2),
    "experts": Launch("cpu", 4, 1, "fsdp", "bf16-mixed", expert_parallel_size=2),
    "hsdp": Launch("cpu", 4, 1, "hsdp", "32", replicas=2),
}
MIXTURE = (
    "--model.model_type mixtral --model.num_local_experts 4 --model.num_experts_per_tok 4 --model.num_key_value_heads 2"
)
"""Each token goes to all experts: a simulation takes shares for even, which those of a router never are."""
FLAGS = {
    "fsdp": ["--fsdp.reduce_gradients", "micro_batch", "--fsdp.prefetch", "2"],
    "ddp": ["--model.hidden_size", "1024", "--precision", "32"],  # several buckets
    "tp": ["--activation_checkpointing", "full"],
    "fsdp_tp": ["--tensor_parallel_size", "2", "--precision", "bf16-mixed"],
    "context": ["--context_parallel_size", "2", "--activation_checkpointing", "full"],
    "experts": [*MIXTURE.split(), "--expert_parallel_size", "2", "--precision", "bf16-mixed"],
    "hsdp": ["--fsdp.replicas", "2", "--optim.name", "muon"],
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "fsdp" else pytest.mark.slow) for n in LAUNCHES])
def test_a_simulated_step_has_the_messages_and_the_memory_of_a_real_one(
    name: str, tiny: list[str], tmp_path: Path
) -> None:
    launch = LAUNCHES[name]
    flags = [*tiny, *SHARED_BATCH, *FLAGS[name], "--max_steps", "3", "--run_dir", str(tmp_path / "run")]
    how = ["--strategy", launch.strategy, "--devices", str(launch.world)]
    before = functools.partial(note_second_step, tmp_path / "step")
    done = train_forked([*flags, *how], tmp_path / "log", before=before)
    assert done.returncode == 0, done.stdout
    real = json.loads((tmp_path / "step.0").read_text())
    messages = Counter({Message(kind, tuple(ranks), size): n for kind, ranks, size, n in real["messages"]})
    step = simulated(flags, launch)
    assert step.messages == messages
    assert len(messages) > 1
    assert (step.weights, step.optimizer) == (real["weights"], real["optimizer"])


def test_messages_tell_what_each_rank_of_a_ring_sends() -> None:
    across = Message("all-reduce", (0, 4), 1000)
    assert (across.sent, across.crosses_nodes(4), across.crosses_nodes(8)) == (1000.0, True, False)
    assert Message("all-gather", (0, 1, 2, 3), 1000).sent == 750.0


@pytest.mark.parametrize(
    ("how", "numbers"), [("--optim.name schedule_free", 2), ("--optim.name lion", 1), ("--optim.average_decay 0.9", 3)]
)
def test_what_an_optimizer_keeps_is_held(how: str, numbers: int, tiny: list[str]) -> None:
    step = simulated([*tiny, *how.split()], Launch("cpu", 2, 1, "fsdp", "32"))
    assert step.optimizer == numbers * step.weights


def test_512_ranks_hold_a_512th_each(tiny: list[str]) -> None:
    launch = Launch("gpu", 8, 64, "fsdp", "bf16-mixed")
    sides = ["--model.hidden_size", "1024", "--model.intermediate_size", "512"]
    flags = [*tiny, "--batch_size", "1024", "--micro_batch_size", "1", *sides]
    whole = simulated(flags, replace(launch, devices=1, num_nodes=1))
    shared = simulated(flags, launch)
    assert not dist.is_initialized()
    assert shared.weights == whole.weights // 512
    assert {len(message.ranks) for message in shared.messages} == {512}


@pytest.mark.parametrize(
    ("flags", "gathers"),
    [
        ([], {4: 5}),
        (["--fsdp.reshard_after_forward", "2"], {4: 3, 2: 2}),
        (["--fsdp.reshard_after_forward", "false"], {4: 3}),
    ],
)
def test_what_stays_gathered_is_not_sent_again(flags: list[str], gathers: dict[int, int], tiny: list[str]) -> None:
    """Of two blocks and what is outside of them, which the backward pass begins with."""
    step = simulated([*tiny, *flags], Launch("cpu", 4, 1, "fsdp", "32"))
    counted: Counter[int] = Counter()
    for message, times in step.messages.items():
        counted[len(message.ranks)] += times if message.kind == "all-gather" else 0
    assert counted == gathers
