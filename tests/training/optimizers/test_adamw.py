"""Weights in bf16, groups of parameters, and clipping, plain and over several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, LlamaConfig, PreTrainedModel

from sslm.config import OptimConfig
from sslm.models.architecture import auto_class_of
from sslm.models.build import build, on_meta
from sslm.models.head import LanguageModel
from sslm.runs.checkpoints.saver import Saver
from sslm.runs.checkpoints.states import States
from sslm.system.terminal import count, keep_libraries_quiet
from sslm.training.optimizers import adamw
from sslm.training.optimizers.adamw import AdamW
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.build import build_optimizer
from sslm.training.optimizers.clipping import clipping_scale, gradient_norm
from sslm.training.optimizers.groups import exemptions, parameter_groups
from sslm.training.optimizers.rounding import rounded_to_bf16
from sslm.training.report import weight_decay_of
from tests.support.processes import run_ranks


def take_steps(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


# ------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("value", [1.0 + 2**-9, -3.14159, 1e-30, 65000.123])
def test_rounding_gives_the_two_neighbours_and_their_mean_is_the_value(value: float) -> None:
    values = torch.full((200_000,), value)
    rounded = rounded_to_bf16(values, torch.Generator().manual_seed(0))
    assert len(rounded.unique()) == 2
    step = (rounded.max() - rounded.min()).double()
    assert (rounded - values).abs().max() < step
    assert abs(rounded.double().mean() - values[0].double()) < 5 * 0.5 * step / len(values) ** 0.5


def test_what_bf16_can_hold_is_not_rounded() -> None:
    held = torch.randn(1000).bfloat16()
    assert torch.equal(rounded_to_bf16(held.float(), torch.Generator()), held)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    assert torch.equal(rounded_to_bf16(special, torch.Generator()).float().view(torch.int32), special.view(torch.int32))
    all_ones = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)  # GPUs make the first
    assert rounded_to_bf16(all_ones, torch.Generator()).isnan().all()


def test_updates_too_small_for_bf16_add_up_as_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [1 + 0.1 * torch.randn(64, 64, generator=generator) for _ in range(200)]
    moved = {}
    for kind, dtype in (("fp32", torch.float32), ("nearest", torch.bfloat16), ("rounding", torch.bfloat16)):
        weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
        optimizer_class: Any = torch.optim.AdamW if kind == "nearest" else AdamW
        take_steps(optimizer_class([{"params": [weight], "weight_decay": 0.1}], lr=1e-5), weight, gradients)
        moved[kind] = 1 - weight.double().mean().item()
    assert moved["nearest"] == 0
    assert moved["fp32"] == pytest.approx(2.2e-3, rel=0.02)
    assert moved["rounding"] == pytest.approx(moved["fp32"], rel=0.1)  # 3 standard deviations of the mean are 0.09


def test_wider_weights_are_updated_as_torch_does_it_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "PIECE", 40)
    gradients = [torch.randn(9, 10), torch.randn(9, 10)]
    start = torch.randn(9, 10)
    ours, theirs, of_one = nn.Parameter(start.clone()), nn.Parameter(start.clone()), nn.Parameter(torch.tensor(2.0))
    take_steps(AdamW([{"params": [ours]}], lr=0.1), ours, gradients)
    take_steps(torch.optim.AdamW([theirs], lr=0.1, fused=True), theirs, gradients)
    assert torch.equal(ours, theirs)
    take_steps(AdamW([{"params": [of_one]}], lr=0.1), of_one, [torch.tensor(1.0)])
    assert of_one.item() == pytest.approx(2.0 - 0.1 - 0.002)


def test_the_seed_the_step_and_the_parameter_decide_what_is_drawn() -> None:
    def after(seed: int) -> list[Tensor]:
        weights = [nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = AdamW([{"params": weights}], lr=1e-3, seed=seed)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        return [weight.detach() for weight in weights]

    torch.manual_seed(5)
    first = after(0)
    torch.manual_seed(6)
    assert torch.equal(first[0], after(0)[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], after(1)[0])


def make(world: int) -> tuple[LanguageModel, Optimizer]:
    """A llama in bf16, sharded where there are several processes."""
    keep_libraries_quiet()
    config = LlamaConfig(
        vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    network = LanguageModel(build(config, "AutoModelForCausalLM", 0).bfloat16())
    if world > 1:
        fully_shard(network, mesh=init_device_mesh("cpu", (world,)))
    return network, build_optimizer(network, OptimConfig(lr=1e-3), seed=3)


def step(network: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(34).reshape(2, 17) % 50
    network(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def local_parts(network: LanguageModel, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = [value for p in network.parameters() for value in (p, *optimizer.state[p].values())]
    return [(s.to_local() if isinstance(s, DTensor) else s).detach().clone() for s in states]


def go_on_from_a_checkpoint(rank: int, world: int, folder: Path) -> None:
    network, optimizer = make(world)
    step(network, optimizer)
    step(network, optimizer)
    group = dist.group.WORLD if world > 1 else None
    saver = Saver(folder, group, lambda checkpoint: [])
    saver.save(States(network, optimizer).tensors(), {"step": 2}, {})
    saver.wait()
    step(network, optimizer)
    again, of_again = make(world)
    before = [p.detach().clone() for p in again.parameters()]
    states = States(again, of_again)
    states.tensors()  # torch makes the optimizer's state with a step of its own
    assert all(map(torch.equal, before, again.parameters()))
    states.load(folder / "step-000002")
    assert {value.dtype for state in of_again.state.values() for value in state.values()} == {torch.float32}
    of_again.step_number = 2  # as the engine says
    step(again, of_again)
    assert all(map(torch.equal, local_parts(network, optimizer), local_parts(again, of_again)))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    go_on_from_a_checkpoint(0, 1, tmp_path)


def same_on_all(values: Tensor, group: dist.ProcessGroup | None = None) -> bool:
    all_values = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_values, values, group=group)
    return all(torch.equal(other, values) for other in all_values)


def round_replicas(rank: int, world: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    plain = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    sharded = nn.Parameter(distribute_tensor(torch.ones(128, dtype=torch.bfloat16), mesh, [Replicate(), Shard(0)]))
    optimizer = AdamW([{"params": [plain]}, {"params": [sharded]}], lr=1e-3)
    for parameter in (plain, sharded):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(plain.unique()) == 2
    assert same_on_all(plain.detach())
    assert same_on_all(sharded.to_local().detach(), mesh.get_group("replicate"))
    assert not same_on_all(sharded.to_local().detach(), mesh.get_group("shard"))


# ------------------------------------------------------------------------------------------------ groups, clipping


def mixed(world: int) -> tuple[nn.ParameterDict, dict[str, Tensor]]:
    """Parameters of all kinds, as tensor parallelism under FSDP has them; and their whole gradients."""
    flat, square = init_device_mesh("cpu", (world,)), init_device_mesh("cpu", (world // 2, 2))
    kinds: dict[str, Any] = {
        "vector": ((5,), None, None),
        "rows": ((3, 4), flat, [Shard(0)]),  # fewer rows than 4 processes: one has none
        "same": ((3, 4), flat, [Replicate()]),
        "square": ((6, 5), square, [Shard(0), Shard(1)]),
        "columns": ((6, 5), square, [Replicate(), Shard(1)]),
        "plain": ((2, 5), None, None),
    }
    parameters, whole = nn.ParameterDict(), {}
    for name, (size, mesh, placements) in kinds.items():
        whole[name] = torch.randn(size, generator=torch.Generator().manual_seed(len(name)))
        placed = whole[name].clone() if mesh is None else distribute_tensor(whole[name].clone(), mesh, placements)
        parameters[name] = nn.Parameter(torch.zeros_like(placed))
        parameters[name].grad = placed
    summands = DTensor.from_local(torch.full((3, 4), 1.0 + dist.get_rank()), flat, [Partial()])
    parameters["summands"] = nn.Parameter(torch.zeros_like(summands.redistribute(placements=[Replicate()])))
    parameters["summands"].grad, whole["summands"] = summands, summands.full_tensor()
    return parameters, whole


def clip_mixed(rank: int, world: int, folder: Path) -> None:
    parameters, whole = mixed(world)
    total = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
    norm = gradient_norm(parameters.values())
    assert type(norm) is Tensor
    assert norm.item() == pytest.approx(total.item(), rel=1e-5)
    optimizer = AdamW([{"params": [parameter]} for parameter in parameters.values()], lr=0.1)
    optimizer.grad_scale = clipping_scale(norm, 1.5)
    optimizer.step()
    for name, parameter in parameters.items():
        mean = optimizer.state[parameter]["exp_avg"]
        mean = mean.full_tensor() if isinstance(mean, DTensor) else mean
        torch.testing.assert_close(mean, 0.1 * whole[name] * 1.5 / total, rtol=1e-4, atol=1e-6)


def group_mixed(rank: int, world: int, folder: Path) -> None:
    parameters, _ = mixed(world)
    names = {parameter: name for name, parameter in parameters.items()}
    groups = [{names[p] for p in group["params"]} for group in parameter_groups(parameters, 0.1)]  # type: ignore[attr-defined]
    assert groups == [{"rows", "same", "summands"}, {"square", "columns"}, {"plain"}, {"vector"}]


def clip_fsdp_and_tensor_parallel(rank: int, world: int, folder: Path) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8))

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plain, shared = network(), network()
    parallelize_module(shared, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(shared, mesh=mesh["dp"])
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    for module in (plain, shared):
        module(inputs).square().sum().backward()
    norms = [gradient_norm(module.parameters()) for module in (plain, shared)]
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=1e-5)
    assert same_on_all(norms[1])
    build_optimizer(shared.bfloat16(), OptimConfig(lr=1e-2)).step()
    for one, other in zip(plain.parameters(), shared.parameters(), strict=True):
        assert isinstance(other, DTensor)
        assert isinstance(other.grad, DTensor)
        torch.testing.assert_close(other.grad.full_tensor().float(), one.grad, rtol=1e-2, atol=1e-4)
        assert same_on_all(other.full_tensor().detach())


def in_turn(rank: int, world: int, folder: Path, checks: list[Any]) -> None:
    for check in checks:
        check(rank, world, folder)


def test_two_processes_clip_and_group_as_one_and_resume_bit_for_bit(tmp_path: Path) -> None:
    run_ranks(in_turn, 2, tmp_path, tmp_path, [clip_mixed, go_on_from_a_checkpoint])


@pytest.mark.slow
def test_four_processes_clip_and_group_as_one_and_round_replicas_alike(tmp_path: Path) -> None:
    run_ranks(in_turn, 4, tmp_path, tmp_path, [clip_mixed, group_mixed, clip_fsdp_and_tensor_parallel, round_replicas])


DECAYED = {"weight", "weight_ih_l0", "weight_hh_l0", "gate_up_proj", "down_proj", "q", "k", "v", "o", "r", "seg_embed"}
"""Last parts of the names of what decays in the architectures below."""
TIME_MIXES = {f"time_mix_{name}" for name in ("key", "value", "receptance")}
EXEMPT: dict[str, set[str]] = {
    "mamba": {"norms", "biases", "A_log", "D"},
    "mamba2": {"norms", "biases", "A_log", "D"},
    "jamba": {"norms", "biases", "A_log", "D"},
    "rwkv": {"norms", "time_decay", "time_first", *TIME_MIXES},
    "sslm_lstm": {"biases"},
    "opt": {"norms", "biases"},
    "mixtral": {"norms"},
    "gpt_oss": {"norms", "biases", "sinks"},
    "cohere": {"norms"},
    "xlnet": {"norms", "biases", "mask_emb"},
    "bart": {"norms", "biases"},
}
"""Kinds that weight decay leaves out, by architecture."""


def on_meta_with_two_layers(model_type: str) -> PreTrainedModel:
    keys = {"num_hidden_layers": 2, "use_qk_norm": True} if model_type == "cohere" else {"num_hidden_layers": 2}
    return on_meta(AutoConfig.for_model(model_type, **keys), auto_class_of(model_type))


@pytest.mark.parametrize("model_type", EXEMPT)
def test_what_is_no_matrix_does_not_decay_whatever_its_shape(model_type: str) -> None:
    model = on_meta_with_two_layers(model_type)
    names = {parameter: name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    found = exemptions(model)
    assert {kind for _, kind in found} == {None, *EXEMPT[model_type]}
    assert {names[parameter] for parameter, kind in found if kind is None} <= DECAYED
    decayed = [parameter for parameter, kind in found if kind is None]
    assert min(parameter.ndim for parameter in decayed) == 2
    others = sum(parameter.numel() for parameter in model.parameters()) - sum(p.numel() for p in decayed)
    told = weight_decay_of(model, 0.1)
    assert told.startswith("Weight decay 0.1: ")
    assert f"{count(others)} don't (" in told
    assert all(kind in told for kind in EXEMPT[model_type])


class NormedEmbedding(nn.Embedding):
    """As Inkling has one."""


def test_an_embedding_decays_whatever_it_is_called() -> None:
    assert [kind for _, kind in exemptions(nn.ModuleDict({"norm": NormedEmbedding(3, 4)}))] == [None]


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "t5"])
def test_all_matrices_and_embeddings_decay_in_the_models_order(model_type: str) -> None:
    model = on_meta_with_two_layers(model_type)
    model.get_input_embeddings().requires_grad_(False)  # frozen: of no group
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    decayed, others = parameter_groups(model, 0.1)
    assert list(map(id, decayed["params"])) == list(map(id, matrices))  # type: ignore[call-overload]
    assert list(map(id, others["params"])) == list(map(id, vectors))  # type: ignore[call-overload]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


class Waits(TorchDispatchMode):
    """Counts what would make the CPU wait for a GPU."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_clips_and_waits_for_nothing(dtype: torch.dtype) -> None:
    weights = [nn.Parameter(torch.zeros(1000, dtype=dtype)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn(1000).to(dtype)
    exact = torch.cat([w.grad.double() for w in weights if w.grad is not None])
    optimizer = AdamW([{"params": weights}], lr=0.1)
    with Waits() as waits:
        norm = gradient_norm(iter(weights))
        optimizer.grad_scale, optimizer.withheld = clipping_scale(norm, 1.0), torch.tensor(0.0)
        optimizer.step()
    assert waits.num == 0
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact.norm().item(), rel=1e-6)
    means = torch.cat([optimizer.state[weight]["exp_avg"].double() for weight in weights])
    torch.testing.assert_close(means, 0.1 * exact / exact.norm(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("told_by", ["withheld", "found_inf", "both"])
def test_an_update_that_is_withheld_changes_nothing(dtype: torch.dtype, told_by: str) -> None:
    weight = nn.Parameter(torch.randn(500).to(dtype))
    optimizer = AdamW([{"params": [weight], "weight_decay": 0.1}], lr=0.1)
    take_steps(optimizer, weight, [torch.randn(500)])
    before = [value.clone() for value in (weight.detach(), *optimizer.state[weight].values())]
    assert before[1].item() == 1
    optimizer.withheld = torch.tensor(float(told_by != "found_inf"))
    optimizer.found_inf = torch.tensor(1.0) if told_by == "found_inf" else torch.tensor(0.0)
    if told_by == "withheld":
        optimizer.found_inf = None
    optimizer.grad_scale = torch.tensor(float("nan"))
    take_steps(optimizer, weight, [torch.full((500,), float("nan"))])
    assert all(map(torch.equal, before, (weight.detach(), *optimizer.state[weight].values())))


def test_without_any_gradient_the_norm_is_0() -> None:
    assert gradient_norm([nn.Parameter(torch.ones(2))]).item() == 0
