"""Every optimizer: against its paper or torch, over several processes, from checkpoint to checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from sslm.config import OptimConfig
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.parallel.tensor_parallel import share_matrices
from sslm.runs.checkpoints.optimizer_states import hidden_matrices
from sslm.runs.checkpoints.saver import Saver
from sslm.runs.checkpoints.states import States
from sslm.system.terminal import keep_libraries_quiet
from sslm.training.optimizers import muon, newton_schulz, schedule_free
from sslm.training.optimizers.adamw_8bit import decoded as decode
from sslm.training.optimizers.adamw_8bit import encoded as encode
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.build import OPTIMIZERS, build_optimizer
from sslm.training.optimizers.clipping import clipping_scale, gradient_norm
from sslm.training.optimizers.groups import HIDDEN
from tests.support.processes import run_ranks

LR, DECAY = 0.02, 0.1
Steps = Callable[[Tensor, list[Tensor]], Tensor]


def gradients(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(4)]


def after_ours(name: str, start: Tensor, steps: list[Tensor], **group: Any) -> Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = OPTIMIZERS[name]([{"params": [weight], "weight_decay": DECAY, **group}], lr=LR, betas=(0.9, 0.99))
    for gradient in steps:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return weight.detach()


def after_torch(optimizer: torch.optim.Optimizer, weight: Tensor, steps: list[Tensor]) -> Tensor:
    for gradient in steps:
        weight.grad = gradient
        optimizer.step()
    return weight.detach()


# ------------------------------------------------------------------------------------------------ one by one


def test_lion_is_algorithm_2_of_its_paper() -> None:
    theta, m = start, steps = torch.randn(6, 5), gradients(6, 5)
    theta, m = start.clone(), torch.zeros(6, 5)
    for g in steps:
        c = 0.9 * m + (1 - 0.9) * g
        theta = theta - LR * (torch.sign(c) + DECAY * theta)
        m = 0.99 * m + (1 - 0.99) * g
    torch.testing.assert_close(after_ours("lion", start, steps), theta)


def orthogonalised_one_by_one(g: Tensor) -> Tensor:
    """As Jordan et al. write it, in fp32."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = g / (g.norm() + 1e-7)
    if g.size(0) > g.size(1):
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.size(0) > g.size(1) else x


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_newton_schulz_of_a_batch_is_that_of_each_matrix(shape: tuple[int, int]) -> None:
    matrices = torch.stack(gradients(*shape))
    single = torch.stack([orthogonalised_one_by_one(matrix) for matrix in matrices])
    torch.testing.assert_close(newton_schulz.orthogonalised(matrices), single, rtol=1e-4, atol=1e-5)


def test_muon_is_torchs_with_the_scale_of_adamws_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "working_dtype", lambda device: torch.bfloat16)
    start, steps = torch.randn(16, 24), gradients(16, 24)
    theirs = nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    expected = after_torch(reference, theirs, steps) - start
    ours = after_ours("muon", start, steps, **{HIDDEN: True}) - start
    assert (ours - expected).norm() < 0.01 * expected.norm()  # both multiply in bf16, in another order


@pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 4)])
def test_adafactor_is_torchs(shape: tuple[int, ...]) -> None:
    start, steps = torch.randn(shape), gradients(*shape)
    theirs = nn.Parameter(start.clone())
    expected = after_torch(torch.optim.Adafactor([theirs], lr=LR, weight_decay=DECAY), theirs, steps)
    torch.testing.assert_close(after_ours("adafactor", start, steps), expected)


def test_schedule_free_is_algorithm_1_of_its_paper() -> None:
    start, steps = torch.randn(6, 5), gradients(6, 5)
    x, z, y, v, total = start.clone(), start.clone(), start.clone(), torch.zeros(6, 5), 0.0
    for t, g in enumerate(steps, start=1):
        v = 0.99 * v + (1 - 0.99) * g**2
        correction = (1 - 0.99**t) ** 0.5
        z = z - LR * correction * g / (v.sqrt() + 1e-8 * correction) - LR * DECAY * y
        total += LR**2
        x = (1 - LR**2 / total) * x + LR**2 / total * z
        y = (1 - 0.9) * z + 0.9 * x
    torch.testing.assert_close(after_ours("schedule_free", start, steps), y, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(schedule_free.averaged(y, z, 0.9), x, rtol=1e-5, atol=1e-6)


def test_moments_of_8_bits_are_nearly_those_of_32() -> None:
    start, steps = torch.randn(64, 300), gradients(64, 300)
    exact = after_ours("adamw", start, steps) - start
    assert (after_ours("adamw_8bit", start, steps) - start - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("is_signed", [True, False])
def test_codes_stand_for_the_nearest_value_over_six_powers_of_ten(is_signed: bool) -> None:
    values = 10.0 ** -torch.linspace(0, 6, 1000).reshape(2, 500)
    values = torch.cat([values, -values]) if is_signed else values
    codes, scale = encode(nn.Parameter(values), values, is_signed)
    assert codes.dtype == torch.uint8
    assert scale.shape == (len(values), 1)
    error = (decode(codes, scale, is_signed) / values - 1).abs()
    assert error[:, :80].max() < 0.04
    assert error.max() < 1
    none = torch.zeros(2, 3)
    assert torch.equal(decode(*encode(nn.Parameter(none), none, is_signed), is_signed), none)


def test_muon_takes_the_same_steps_however_many_matrices_it_works_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, of_one), (other, of_other) = make("muon"), make("muon")
    take_steps(one, of_one, 2)
    monkeypatch.setattr(muon, "AT_ONCE", 500)  # two of 12 x 20, three of 12 x 12
    take_steps(other, of_other, 2)
    for ours, theirs in zip(everything(one, of_one), everything(other, of_other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_leaves_all_but_the_blocks_matrices_to_adamw() -> None:
    network, optimizer = make("muon")
    names = {parameter: name for name, parameter in network.named_parameters()}
    hidden = {names[p] for p in hidden_matrices(network)}
    assert hidden == {name for name in names.values() if "proj" in name}
    take_steps(network, optimizer, 1)
    for parameter, name in names.items():
        kept = {"step", "momentum_buffer"} if name in hidden else {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[parameter].keys() == kept, name


# ------------------------------------------------------------------------------------------------ all of them

each = pytest.mark.parametrize("name", OPTIMIZERS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@each
@each_dtype
def test_an_update_that_is_withheld_changes_nothing(name: str, dtype: torch.dtype) -> None:
    network, optimizer = make(name, dtype)
    take_steps(network, optimizer, 1)
    before = [value.clone() for value in everything(network, optimizer)]
    optimizer.withheld, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(float("nan"))
    take_steps(network, optimizer, 1)
    assert all(map(torch.equal, before, everything(network, optimizer)))


@each
def test_gradients_are_clipped_by_what_they_are_divided_by(name: str) -> None:
    (one, of_one), (other, of_other) = make(name), make(name)
    of_other.grad_scale = torch.tensor(4.0)
    take_steps(one, of_one, 3, scale=0.25)
    take_steps(other, of_other, 3)
    for ours, theirs in zip(everything(one, of_one), everything(other, of_other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@each
def test_small_updates_of_weights_in_bf16_add_up(name: str) -> None:
    (narrow, of_narrow), (wide, of_wide) = make(name, torch.bfloat16, lr=1e-5), make(name, lr=1e-5)
    wide.load_state_dict(narrow.state_dict())
    for network, optimizer in ((narrow, of_narrow), (wide, of_wide)):
        before = {n: p.detach().double().clone() for n, p in network.named_parameters()}
        for number in range(40):
            generator = torch.Generator().manual_seed(number)
            for parameter in network.parameters():
                parameter.grad = (1 + 0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
            optimizer.step()
        moved = [float((p.detach().double() - before[n]).mean()) for n, p in network.named_parameters()]
        network.moved = torch.tensor(moved).mean().item()  # type: ignore[assignment]
    assert narrow.moved == pytest.approx(wide.moved, rel=0.2)
    assert abs(wide.moved) > 1e-6  # type: ignore[arg-type,operator]


def make(
    name: str, dtype: torch.dtype = torch.float32, lr: float = 1e-2, how: str = "single", world: int = 1
) -> tuple[LanguageModel, Optimizer]:
    """A small llama, plain or sharded, and its optimizer."""
    keep_libraries_quiet()
    config = LlamaConfig(
        vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2
    )
    network = LanguageModel(build(config, "AutoModelForCausalLM", 0).to(dtype))
    if how == "tp":
        share_matrices(network.model, init_device_mesh("cpu", (world,)))
    if how == "fsdp":
        for layer in network.model.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))  # type: ignore[arg-type]
        fully_shard(network, mesh=init_device_mesh("cpu", (world,)))
    return network, build_optimizer(network, OptimConfig(name=name, lr=lr), seed=3)  # type: ignore[arg-type]


def take_steps(network: LanguageModel, optimizer: Optimizer, number: int, scale: float = 1.0, first: int = 0) -> None:
    """Take steps on batches that follow from their numbers."""
    for step in range(first, first + number):
        optimizer.step_number = step
        ids = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(step))
        (scale * network(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(network: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    tensors = [value for p in network.parameters() for value in (p, *optimizer.state[p].values())]
    return [(t.full_tensor() if isinstance(t, DTensor) else t).detach() for t in tensors]


def save(folder: Path, network: LanguageModel, optimizer: Optimizer, step: int, world: int) -> None:
    saver = Saver(folder, torch.distributed.group.WORLD if world > 1 else None, lambda checkpoint: [])
    saver.save(States(network, optimizer).tensors(), {"step": step}, {})
    saver.wait()


def as_single_and_back(rank: int, world: int, folder: Path, name: str) -> None:
    """Each strategy takes one process' steps, goes on from its checkpoint, and one process from theirs."""
    expected = torch.load(folder / "expected.pt")
    for how in ("ddp", "fsdp", "tp"):
        network, optimizer = make(name, how=how, world=world)
        optimizer.make_states()
        States(network, optimizer).load(folder / "single/step-000002")
        take_steps(network, optimizer, 2, first=2)
        for ours, single in zip(everything(network, optimizer), expected, strict=True):
            torch.testing.assert_close(ours, single, rtol=1e-4, atol=2e-5)
        before = [value.clone() for value in everything(network, optimizer)]
        save(folder / how, network, optimizer, 4, world)
        take_steps(network, optimizer, 1, first=4)
        again, of_again = make(name, how=how, world=world)
        of_again.make_states()
        States(again, of_again).load(folder / how / "step-000004")
        assert all(map(torch.equal, before, everything(again, of_again)))
        take_steps(again, of_again, 1, first=4)
        assert all(map(torch.equal, everything(network, optimizer), everything(again, of_again)))


@each
def test_strategies_take_one_process_steps_and_go_on_from_each_other(name: str, tmp_path: Path) -> None:
    network, optimizer = make(name)
    take_steps(network, optimizer, 2)
    save(tmp_path / "single", network, optimizer, 2, 1)
    take_steps(network, optimizer, 2, first=2)
    torch.save(everything(network, optimizer), tmp_path / "expected.pt")
    run_ranks(as_single_and_back, 2, tmp_path, tmp_path, name)
    for how in ("ddp", "fsdp", "tp"):
        again, of_again = make(name)
        of_again.make_states()
        States(again, of_again).load(tmp_path / how / "step-000004")
        for ours, single in zip(everything(again, of_again), everything(network, optimizer), strict=True):
            torch.testing.assert_close(ours, single, rtol=1e-4, atol=2e-5)


@each
def test_a_model_learns(name: str) -> None:
    network, optimizer = make(name, lr=0.1 if name == "adafactor" else 1e-2)  # its rate is relative to the weights
    ids = torch.arange(34).reshape(2, 17) % 50

    def loss() -> Tensor:
        return network(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum() / 32  # type: ignore[no-any-return]

    before = loss().item()
    for _ in range(30):
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.grad_scale = clipping_scale(gradient_norm(network.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert loss().item() < 0.5 * before
