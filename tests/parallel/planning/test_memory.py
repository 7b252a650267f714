"""What is planned of memory is what real runs take."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, LlamaConfig, MixtralConfig, PreTrainedConfig, T5Config

from sslm.config import Config, OptimConfig
from sslm.models.build import build, on_meta
from sslm.models.head import LanguageModel
from sslm.parallel.launch import Launch
from sslm.parallel.parallelize import parallelize
from sslm.parallel.pipeline import stages_of
from sslm.parallel.planning.activation_formula import by_formula
from sslm.parallel.planning.activation_memory import measure
from sslm.parallel.planning.budget import Budget
from sslm.parallel.planning.machines import Machine, named
from sslm.parallel.planning.memory import (
    ROOM,
    WORKSPACES,
    Memory,
    batch_memory,
    choose_strategy,
    largest_micro_batch,
    sizes,
    static_memory,
)
from sslm.parallel.recompute import Recompute, parse_recompute
from sslm.system.errors import UserError
from sslm.training.optimizers.build import OPTIMIZERS, build_optimizer
from tests.support.families import BLOCKS, CAUSAL, FAMILIES, LENGTH, LLAMA, SEQ2SEQ, SHAPES, VOCABULARY
from tests.support.processes import run_command, run_ranks

T5_BASE = T5Config(num_layers=12, num_heads=12, d_model=768, d_ff=3072, feed_forward_proj="gated-gelu")


def launch(
    strategy: str = "single", world: int = 1, *, num_nodes: int = 1, precision: str = "32", **how: int
) -> Launch:
    return Launch("cpu", world // num_nodes, num_nodes, strategy, precision, **how)


# ------------------------------------------------------------------------------------------------ activations


def test_recomputation_keeps_less_the_more_is_recomputed() -> None:
    config = LlamaConfig(**(BLOCKS | {"num_hidden_layers": 6}), vocab_size=VOCABULARY)
    activations = measure(on_meta(config, CAUSAL), SHAPES, on_gpu=True)
    hows = ("full", "budget:0.5", "selective", "none")
    memories = [batch_memory(activations, 4, parse_recompute(how), False, 1.0, 0) for how in hows]
    amounts = [memory.activations for memory in memories]
    assert amounts == sorted(amounts)
    assert amounts[0] < amounts[-1] / 4
    assert memories[0].total >= activations.of(4).largest + activations.of(4).inputs
    assert amounts[2] < batch_memory(activations, 4, Recompute(), True, 1.0, 0).activations < amounts[3]


def test_a_block_is_computed_again_when_the_logits_are_gone() -> None:
    activations = measure(on_meta(LLAMA, CAUSAL), SHAPES, on_gpu=True)
    few, many = (batch_memory(activations, 1, Recompute("full"), False, 1.0, logits) for logits in (0, 1 << 20))
    assert many.activations == activations.one.outside + activations.one.inputs + activations.one.repeated
    assert few.total == pytest.approx(many.activations + max(activations.one.largest, activations.one.head))


@pytest.mark.parametrize(
    ("family", "shapes", "micro_batch_size", "gibibytes", "compiled"),
    [
        ((GPT2Config(vocab_size=50304), CAUSAL), {"input_ids": (1024,), "labels": (1024,)}, 8, 8.85, 5.33),
        ((T5_BASE, SEQ2SEQ), {"input_ids": (512,), "labels": (114,)}, 32, 29.21, 15.08),
    ],
    ids=["gpt2", "t5"],
)
def test_mixed_precision_on_gpus_takes_what_torchs_allocator_gave(
    family: tuple[PreTrainedConfig, str], shapes: Any, micro_batch_size: int, gibibytes: float, compiled: float
) -> None:
    """The allocator's peaks are of the CUDA build, in the second step of a run of two micro-batches a step.

    Those of compiled blocks are with torch's partitioner, without the compiler behind it.
    """
    model = on_meta(*family)
    for unit, peak in (("off", gibibytes), ("block", compiled)):
        config = Config(batch_size=2 * micro_batch_size, precision="bf16-mixed", compile=unit)  # type: ignore[arg-type]
        on_h100 = Budget(config, model, shapes, None, named("h100"))
        planned = on_h100.memory(on_h100.launch("single"), micro_batch_size).total
        assert planned / 2**30 == pytest.approx(peak, rel=0.03)


def test_logits_are_counted_at_scored_places_with_their_gradients() -> None:
    activations = measure(on_meta(*FAMILIES["bert"]), SHAPES, on_gpu=True)
    assert activations.has_head
    all_places = batch_memory(activations, 2, Recompute(), False, 1.0, 8 * 2 * LENGTH * VOCABULARY).logits
    some = batch_memory(activations, 2, Recompute(), False, 0.25, 2 * 2 * LENGTH * VOCABULARY).logits
    assert some == pytest.approx(all_places / 4)
    assert all_places > 12 * 2 * LENGTH * VOCABULARY  # log-softmax, and two gradients


# ------------------------------------------------------------------------------------------------ weights and states


def bytes_of(tensors: Any) -> int:
    local = (t.to_local() if hasattr(t, "to_local") else t for t in tensors if t is not None)
    return sum(t.numel() * t.element_size() for t in local)


def measured_states(network: nn.Module, optimizer: torch.optim.Optimizer) -> Memory:
    """After a forward and a backward pass and a step."""
    ids = torch.ones(2, LENGTH, dtype=torch.long)
    network(input_ids=ids, labels=ids).sum().backward()
    optimizer.step()
    moments = (value for state in optimizer.state.values() for value in state.values())
    return Memory(bytes_of(network.parameters()), bytes_of(p.grad for p in network.parameters()), bytes_of(moments))


def compare_states(rank: int, world: int, strategy: str, family: str, in_bf16: bool, optimizer: str = "adamw") -> None:
    config, auto_class = FAMILIES[family]
    model = build(config, auto_class, 0).train()
    precision = "bf16-true" if in_bf16 else "32"
    shards = world if strategy == "fsdp" else 1
    of = sizes(on_meta(config, auto_class), shards, optimizer=optimizer)
    planned = static_memory(of, launch(strategy, world, precision=precision), Config(), 1)
    network: nn.Module = LanguageModel(model)
    mesh = None
    if strategy == "fsdp":
        mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    parallelize(network, model, mesh, in_bf16=in_bf16)  # type: ignore[arg-type]
    assert isinstance(network, FSDPModule) == (strategy == "fsdp")
    if strategy == "ddp":
        network = DistributedDataParallel(network, gradient_as_bucket_view=True)
    real = measured_states(network, build_optimizer(network, OptimConfig(lr=1e-3, name=optimizer)))  # type: ignore[arg-type]
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(planned, part) == pytest.approx(getattr(real, part), rel=0.02), (part, planned, real)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart", "lstm"])
def test_weights_gradients_and_optimizer_states_of_one_process_are_as_planned(family: str) -> None:
    compare_states(0, 1, "single", family, in_bf16=False)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw"])
def test_states_of_each_optimizer_are_as_planned(optimizer: str) -> None:
    compare_states(0, 1, "single", "t5", in_bf16=False, optimizer=optimizer)


def test_weights_in_bf16_take_half_and_their_moments_do_not() -> None:
    compare_states(0, 1, "single", "llama", in_bf16=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_gradients_and_optimizer_states_of_two_processes_are_as_planned(strategy: str, tmp_path: Path) -> None:
    run_ranks(compare_states, 2, tmp_path, strategy, "gpt2", False, "muon")  # its head and embedding are tied


def test_strategies_shard_what_they_say() -> None:
    model = on_meta(LLAMA, CAUSAL)
    n = model.num_parameters()

    def of(strategy: str, world: int, num_micro_batches: int = 1, precision: str = "32") -> Memory:
        shards = 1 if strategy == "ddp" else world
        return static_memory(
            sizes(model, shards), launch(strategy, world, precision=precision), Config(), num_micro_batches
        )

    def numbers(memory: Memory) -> list[float]:
        return [round(part / n, 1) for part in (memory.weights, memory.gradients, memory.optimizer)]

    assert numbers(of("ddp", 4)) == [4, 4, 8]
    assert numbers(of("fsdp", 4)) == [1, 1, 2]
    assert numbers(of("fsdp", 4, num_micro_batches=2)) == [1, 4, 2]  # gradients wait for the step's end
    assert numbers(of("deepspeed_1", 4)) == [4, 4, 3]
    assert numbers(of("deepspeed_2", 4)) == [4, 1, 3]
    assert numbers(of("deepspeed_3", 4)) == [1, 1, 3]
    assert numbers(of("deepspeed_2", 4, precision="bf16-true")) == [2, 0.5, 3]
    assert numbers(of("ddp", 4, precision="bf16-true")) == [2, 2, 8]


def test_offloaded_states_are_the_hosts() -> None:
    of, config = sizes(on_meta(LLAMA, CAUSAL), 2), Config()
    kept = static_memory(of, launch("deepspeed_3", 2), config, 1)
    config = replace(config, deepspeed=replace(config.deepspeed, offload_optimizer=True, offload_parameters=True))
    offloaded = static_memory(of, launch("deepspeed_3", 2), config, 1)
    assert (offloaded.weights, offloaded.optimizer) == (0, 0)
    assert offloaded.host == kept.weights + kept.optimizer


def test_stages_of_a_pipeline_have_each_weight_once_but_for_one_of_both_ends() -> None:
    tied = on_meta(LlamaConfig(**BLOCKS, vocab_size=VOCABULARY, tie_word_embeddings=True), CAUSAL)
    for model, twice in ((on_meta(LLAMA, CAUSAL), 0), (tied, 64 * VOCABULARY)):
        assert sum(sizes(stage).whole for stage in stages_of(model, 2)) == model.num_parameters() + twice


def test_experts_are_cut_among_all_devices_and_held_whole_by_those_that_share_them() -> None:
    model = on_meta(MixtralConfig(**BLOCKS, vocab_size=VOCABULARY, num_local_experts=4), CAUSAL)
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    rest = model.num_parameters() - experts
    of = sizes(model, 4, expert_parallel=2)
    assert (of.whole, of.sharded) == (rest + experts // 2, (rest + experts) // 4)
    assert (of.states, of.states_sharded) == (8 * of.whole, 8 * of.sharded)


def test_tied_weights_count_once_and_shared_matrices_in_part() -> None:
    tied = on_meta(LlamaConfig(**BLOCKS, vocab_size=VOCABULARY, tie_word_embeddings=True), CAUSAL)
    untied = on_meta(LLAMA.__class__(**BLOCKS, vocab_size=VOCABULARY), CAUSAL)
    assert sizes(untied).whole - sizes(tied).whole == 64 * VOCABULARY
    assert sizes(untied).whole == untied.num_parameters()
    norms = 5 * 64
    assert sizes(untied, tensor_parallel=2).whole == (untied.num_parameters() - norms) // 2 + norms


# ------------------------------------------------------------------------------------------------ what fits


def test_the_largest_micro_batch_divides_the_share_and_leaves_room() -> None:
    assert largest_micro_batch(12, 100, lambda size: 10.0 * size) == 6  # 90 of 100
    assert largest_micro_batch(7, 100, lambda size: 10.0 * size) == 7
    assert largest_micro_batch(11, 100, lambda size: 10.0 * size) == 1
    assert largest_micro_batch(8, 100, lambda size: 91.0) is None


def budget(machine: Machine, **asked: Any) -> Budget:
    config = Config(seq_len=LENGTH, batch_size=64, **asked)
    return Budget(config, on_meta(LLAMA, CAUSAL), SHAPES, None, machine)


def test_the_micro_batch_grows_with_memory_until_it_is_the_whole_share() -> None:
    found = [
        budget(replace(named("h100:2"), memory=mib * 2.0**20 + WORKSPACES / ROOM), micro_batch_size="auto")
        for mib in (8, 16, 32, 64, 128)
    ]
    of = [n.micro_batch_size(n.launch("ddp")) for n in found]
    assert of == sorted(of)
    assert of[0] < of[2]
    assert of[-1] == 32
    assert all(
        n.memory(n.launch("ddp"), size).total <= 0.9 * n.machine.memory for n, size in zip(found, of, strict=True)
    )


def test_what_can_not_fit_is_refused_saying_by_how_much_and_what_would() -> None:
    small = budget(replace(named("h100:2"), memory=81 * 2.0**20))
    with pytest.raises(
        UserError,
        match=r"--strategy ddp: with micro-batches of 32 each device needs \d+ MiB of memory, \d+ MiB more than "
        r"the 81 MiB of each H100; what would fit: .*--micro_batch_size \d",
    ) as refused:
        small.micro_batch_size(small.launch("ddp"))
    flags = str(refused.value).split("what would fit: ")[1].split(", or ")[0].split()
    typed = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    would = replace(
        small,
        config=replace(
            small.config,
            micro_batch_size=int(typed["micro_batch_size"]),
            activation_checkpointing=typed.get("activation_checkpointing", "none"),
        ),
    )
    assert would.micro_batch_size(would.launch(typed.get("strategy", "ddp"))) == int(typed["micro_batch_size"])
    tiny = budget(replace(named("h100:2"), memory=1000.0))
    with pytest.raises(UserError, match="nothing would, on any number of them"):
        tiny.micro_batch_size(tiny.launch("ddp"))


def test_auto_takes_what_communicates_least_of_what_fits() -> None:
    def chosen(machine: str, **gigabytes: float) -> str:
        return choose_strategy(lambda name: gigabytes[name] * 2**30, named(machine))[0]

    assert chosen("h100") == "single"
    assert chosen("h100:8", ddp=40) == "ddp"
    assert chosen("h100:8", ddp=70, fsdp=20) == "fsdp"
    assert chosen("h100:8x4", ddp=70, hsdp=20, fsdp=10) == "hsdp"
    assert chosen("h100:8x4", ddp=400, hsdp=70, fsdp=30) == "fsdp"
    assert budget(named("cpu:2")).choose_strategy()[0] == "ddp"


def test_an_architecture_that_can_not_be_measured_is_planned_by_formula() -> None:
    mixture = replace(budget(named("h100:2")), model=on_meta(*FAMILIES["switch"]))
    in_bf16 = replace(mixture.launch("ddp"), precision="bf16-true")  # but for its router, which casts itself
    assert mixture.activations(in_bf16) == by_formula(mixture.model, SHAPES, bytes_per_number=2)
    model = on_meta(*FAMILIES["jetmoe"])
    activations = by_formula(model, SHAPES, bytes_per_number=2, casts=True)
    copies = 2 * sum(p.numel() for p in model.model.layers.parameters())
    assert activations.of(8).inside == pytest.approx(8 * (activations.one.inside - copies) + copies)


# ------------------------------------------------------------------------------------------------ a real run

REAL_RUN = """
import json, sys
from lightning.pytorch import Callback, Trainer
from sslm import CausalLM, DataModule
from sslm.config import DataConfig
from sslm.objectives.causal_lm import CausalLMRecipe
from transformers import LlamaConfig

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

class Watch(Callback):
    seen = []
    def setup(self, trainer, module, stage):
        self.before = resident()
    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(resident() - self.before)
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(resident() - self.before)

source = DataConfig(train=sys.argv[1], tokenizer="bpe:512", cache_dir=sys.argv[2], val_sequences=4)
data = DataModule(source, CausalLMRecipe(), seq_len=16, batch_size=1)
config = LlamaConfig(
    hidden_size=768, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=12, vocab_size=512
)
small = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=512)
data.setup()
watch = Watch()
for model in (small, config):  # the first has what a process loads and sets up once: modules, threads, kernels
    watch.seen.clear()
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(CausalLM(model), datamodule=data)
print("SEEN " + json.dumps(max(watch.seen)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux tells a process' memory there")
def test_a_real_run_grows_by_what_is_planned(text: Path, cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(REAL_RUN)
    gives_back = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc, what is freed: it is not the run's any more
    env = {"PYTHONPATH": os.getcwd(), **gives_back}
    done = run_command([str(script), str(text), str(cache)], timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    grown = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))[5:])
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=12, vocab_size=512
    )
    model = on_meta(config, CAUSAL)
    asked = Config(seq_len=16, batch_size=1)
    plan = Budget(asked, model, {"input_ids": (16,), "labels": (16,)}, None, named("cpu"))
    planned = plan.memory(plan.launch("single"), 1)
    assert 45e6 < model.num_parameters() < 55e6
    assert grown == pytest.approx(planned.weights + planned.gradients + planned.optimizer, rel=0.10)


def test_auto_compiles_where_there_is_a_compiler_and_rows_keep_their_shape() -> None:
    on_h100 = budget(named("h100"))
    assert on_h100.launch("single").compiled == "model"
    assert replace(on_h100, is_labelled=True).launch("single").compiled == "off"
    assert replace(on_h100, machine=replace(on_h100.machine, has_compiler=False)).launch("single").compiled == "off"
    assert budget(named("h100"), compile="block").launch("single").compiled == "block"
