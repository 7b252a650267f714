"""Weights made after sharding are those of `build`, bit for bit, whatever the sharding. Real gloo processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import local_torch_dtype

from sslm.models.architecture import model_config
from sslm.models.blocks import blocks
from sslm.models.build import build, on_meta, shallow_model
from sslm.models.head import LanguageModel, first_of_head
from sslm.parallel.materialise import Entangled, in_turn, materialise, units, without_weights
from tests.support.processes import run_ranks

CAUSAL, MASKED, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
GROUPED = {**WIDTHS, "num_key_value_heads": 1, "head_dim": 16}
HALVES = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (CAUSAL, GROUPED),
    "qwen3": (CAUSAL, {**GROUPED, "tie_word_embeddings": True}),
    "gemma2": (CAUSAL, GROUPED),
    "gpt2": (CAUSAL, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "opt": (
        CAUSAL,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "gpt_neo": (
        CAUSAL,
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "falcon_h1": (
        CAUSAL,
        {**WIDTHS, "num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    ),
    "sslm_lstm": (CAUSAL, {"hidden_size": 32, "num_hidden_layers": 2}),
    "bert": (MASKED, WIDTHS),
    "roberta": (MASKED, WIDTHS),
    "modernbert": (MASKED, WIDTHS),
    "electra": (MASKED, {**WIDTHS, "embedding_size": 16}),
    "t5": (SEQ2SEQ, {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}),
    "bart": (SEQ2SEQ, HALVES),
    "t5gemma": (SEQ2SEQ, {"encoder": GROUPED, "decoder": {**GROUPED, "cross_attention_hidden_size": 32}}),
}
ENTANGLED = {"apertus": (CAUSAL, WIDTHS), "openai-gpt": (CAUSAL, {"n_embd": 32, "n_layer": 2, "n_head": 2})}

OTHERS = {"olmo3": (CAUSAL, WIDTHS), "longformer": (MASKED, WIDTHS), "olmoe": (CAUSAL, WIDTHS)}


def config(kind: str, **more: Any) -> tuple[PreTrainedConfig, str]:
    """A small one, with the auto class; 65 entries, which two devices can't share evenly."""
    auto_class, settings = (FAMILIES | ENTANGLED | OTHERS)[kind]
    given = {**settings, "vocab_size": 65, **more}
    found = model_config(
        given,
        model_type=kind,
        default={"model_type": "none"},
        auto_class=auto_class,
        vocab_size=65,
        seq_len=16,
        special_ids={"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0},
    )
    return found, auto_class


def tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def assert_alike(made: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = tensors(made), tensors(wanted)
    assert ours.keys() == theirs.keys()
    assert len(list(made.parameters())) == len(list(wanted.parameters()))  # what is tied stays so
    for name, tensor in ours.items():
        want = theirs[name]
        assert (tensor.dtype, tensor.requires_grad) == (want.dtype, want.requires_grad), name
        if isinstance(want, DTensor):
            assert isinstance(tensor, DTensor)
            assert tensor.placements == want.placements, name
            tensor, want = tensor.to_local(), want.to_local()
        assert torch.equal(tensor, want), name


@pytest.mark.parametrize("kind", [*FAMILIES, *ENTANGLED])
def test_weights_are_those_of_build(kind: str) -> None:
    model = on_meta(*config(kind))
    materialise(model, model, config(kind)[1], 3, "cpu")
    assert_alike(model, build(*config(kind), 3))


def in_parts(model: PreTrainedModel) -> bool:
    try:
        return {name for name, _ in in_turn(model, 0)} == {
            name for name, _ in model.named_parameters(remove_duplicate=False)
        }
    except Entangled:
        return False


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_family_needs_the_whole_model_at_once(kind: str) -> None:
    model = without_weights(*config(kind))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(units(model)) == len(blocks(model)) + 1 > 2
    assert in_parts(model)


def test_one_unit_at_a_time_has_memory() -> None:
    model = without_weights(*config("llama"))
    largest = max(
        sum(p.numel() for named in unit for p in named.module.parameters(recurse=False)) for unit in units(model)
    )
    held = set()
    for _ in in_turn(model, 0):
        held.add(sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta))
    assert 0 < min(held) <= max(held) == largest < sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_types_and_devices_that_are_torchs_default_meanwhile_change_nothing() -> None:
    with torch.device("meta"), local_torch_dtype(torch.bfloat16):
        model = on_meta(*config("falcon_h1"))
        materialise(model, model, CAUSAL, 3, "cpu")
    assert_alike(model, build(*config("falcon_h1"), 3))


class Straying(PreTrainedModel):
    """A model of one block whose root does something with a weight inside it."""

    config_class = PreTrainedConfig

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__(PreTrainedConfig())
        self.block = blocks(without_weights(*config("llama")))[0]
        self.rest = nn.Linear(4, 4, device="meta")
        self.what = what

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if module is self:
            self.what(self.get_parameter("block.mlp.up_proj.weight"))


def test_architectures_that_can_not_be_made_in_parts_are_found_out() -> None:
    assert in_parts(Straying(lambda weight: weight.shape))
    assert not in_parts(Straying(lambda weight: weight.data.mul_(0.5)))
    assert not in_parts(Straying(torch.norm))
    assert not any(in_parts(without_weights(*config(kind))) for kind in ENTANGLED)
    shared = without_weights(*config("llama"))
    first, last = blocks(shared)
    last.mlp.up_proj.weight = first.mlp.up_proj.weight
    assert not in_parts(shared)


@pytest.mark.parametrize(
    ("kind", "layers", "num_blocks"),
    [
        ("llama", {"num_hidden_layers": 5}, 2),
        ("gemma2", {"num_hidden_layers": 5}, 2),
        ("olmo3", {"num_hidden_layers": 8}, 4),  # three windows, then full attention
        ("bert", {"num_hidden_layers": 5}, 2),
        ("t5", {"num_layers": 4, "num_decoder_layers": 3}, 4),
        ("bart", {"encoder_layers": 3, "decoder_layers": 3}, 4),
        ("olmoe", {"num_hidden_layers": 3, "num_experts": 12, "num_experts_per_tok": 3}, 2),
        ("longformer", {"num_hidden_layers": 3, "attention_window": [8, 8, 8]}, 3),  # has a list as long as its layers
    ],
)
def test_a_few_layers_stand_in_for_many(kind: str, layers: dict[str, Any], num_blocks: int) -> None:
    given, auto_class = config(kind, **layers)
    few, many = shallow_model(given, auto_class), build(given, auto_class, 0)
    assert len(blocks(few)) == num_blocks
    assert getattr(few.config, "num_experts", None) == layers.get("num_experts_per_tok")
    assert first_of_head(few) == first_of_head(many)


# ------------------------------------------------------------------------------------------------ sharded

Sharding = Callable[[LanguageModel], None]


def over(mesh: DeviceMesh) -> Sharding:
    """FSDP2, or with a mesh of two dimensions HSDP."""

    def shard(network: LanguageModel) -> None:
        for block in blocks(network.model):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    return shard


def tensor_parallel(mesh: DeviceMesh) -> Sharding:
    """Of a llama."""
    attention = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {
        "self_attn.o_proj": RowwiseParallel()
    }
    mlp = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}

    def shard(network: LanguageModel) -> None:
        for block in blocks(network.model):
            parallelize_module(block, mesh, {**attention, **mlp})
        parallelize_module(network.model, mesh, {"model.embed_tokens": RowwiseParallel(), "lm_head": ColwiseParallel()})

    return shard


def in_bf16(network: LanguageModel) -> None:
    """Before they are DTensors, whose `data` this would not reach."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def one_after_the_other(*steps: Sharding) -> Sharding:
    def shard(network: LanguageModel) -> None:
        for step in steps:
            step(network)

    return shard


def sharded(kind: str, shard: Sharding, *, deferred: bool) -> LanguageModel:
    given, auto_class = config(kind)
    model = on_meta(given, auto_class) if deferred else build(given, auto_class, 3)
    network = LanguageModel(model)
    shard(network)
    if deferred:
        with CommDebugMode() as sent:
            materialise(network, model, auto_class, 3, "cpu")
        assert sent.get_total_counts() == 0
    return network


def assert_same_when(kind: str, shard: Sharding) -> LanguageModel:
    network = sharded(kind, shard, deferred=True)
    assert_alike(network, sharded(kind, shard, deferred=False))
    return network


def losses(network: nn.Module, num_steps: int = 3) -> list[float]:
    ids = torch.randint(3, 65, (2, 12), generator=torch.Generator().manual_seed(0))
    optimizer, found = torch.optim.SGD(network.parameters(), lr=1e-3), []
    for _ in range(num_steps):
        loss = network(labels=ids, input_ids=ids).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def on_two(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for kind in ("llama", "qwen3", "gpt2", "sslm_lstm", "bert", "t5", "apertus"):
        torch.manual_seed(0)
        trained = losses(assert_same_when(kind, over(mesh)).eval())
        assert trained == pytest.approx(losses(LanguageModel(build(*config(kind), 3)).eval()), rel=1e-6), kind
    assert_same_when("llama", tensor_parallel(mesh))
    half = assert_same_when("llama", one_after_the_other(in_bf16, over(mesh)))
    assert {parameter.to_local().dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert_same_when("qwen3", in_bf16)


def on_any(rank: int, world: int) -> None:
    for kind in FAMILIES:
        assert_same_when(kind, over(init_device_mesh("cpu", (world,))))


def on_four(rank: int, world: int) -> None:
    for kind in FAMILIES:
        assert_same_when(kind, over(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    both = one_after_the_other(tensor_parallel(mesh["tensor"]), over(mesh["data"]))
    assert_same_when("llama", both)
    assert_same_when("llama", one_after_the_other(in_bf16, tensor_parallel(mesh["tensor"]), over(mesh["data"])))


@pytest.mark.slow
def test_two_processes_hold_their_shares_of_the_same_weights_and_train_alike(tmp_path: Path) -> None:
    run_ranks(on_two, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_holds_its_shares(world: int, tmp_path: Path) -> None:
    run_ranks(on_any, world, tmp_path, timeout=200)


@pytest.mark.slow
def test_replicas_and_tensor_parallel_processes_hold_their_shares(tmp_path: Path) -> None:
    run_ranks(on_four, 4, tmp_path, timeout=200)
