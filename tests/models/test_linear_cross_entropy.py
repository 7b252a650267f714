"""A head's loss some places at a time: the plain one's losses, predictions and gradients, in float64."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from sslm.data.stream.recipe import IGNORED
from sslm.models import linear_cross_entropy as chunks
from sslm.models.build import build
from sslm.models.head import UNPADDED, LanguageModel
from sslm.models.linear_cross_entropy import Loss, linear_cross_entropy
from sslm.models.linear_head import suits
from tests.models.test_head import SMALL, encoder
from tests.support.models import BOTH, both, masked
from tests.support.processes import run_ranks

CLASSES, PADDED, WIDTH = 20, 24, 8
LOSSES = [
    Loss(CLASSES, eps, z_loss, scale, cap)
    for eps, z_loss, scale, cap in itertools.product((0.0, 0.1), (0.0, 0.01), (1.0, 0.5), (None, 3.0))
]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", {"cpu": 1})
    monkeypatch.setattr(chunks, "FEWEST_TOKENS", 5)


def given(has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Hidden states, weight, bias, targets; the last of three rows is not scored."""
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(*size, WIDTH, dtype=torch.float64, requires_grad=True) for size in ((3, 7), (PADDED,))
    )
    bias = torch.randn(PADDED, dtype=torch.float64, requires_grad=True) if has_bias else None
    targets = torch.randint(CLASSES, (3, 7))
    targets[0, 2:5] = targets[2] = IGNORED
    return hidden, weight, bias, targets


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Row losses and predictions as torch's own functions give them."""
    logits = F.linear(hidden, weight, bias)[..., : loss.num_classes] * loss.scale
    if loss.soft_cap is not None:
        logits = loss.soft_cap * torch.tanh(logits / loss.soft_cap)
    flat = logits.flatten(0, 1), targets.flatten()
    losses = F.cross_entropy(*flat, reduction="none", label_smoothing=loss.label_smoothing).view_as(targets)
    losses = losses + loss.z_loss * logits.logsumexp(-1).square() * (targets != IGNORED)
    return losses.sum(1), torch.where(targets == IGNORED, IGNORED, logits.argmax(-1))


def gradients(losses: Tensor, factors: Tensor | None, *of: Tensor | None) -> list[Tensor]:
    """Gradients of all rows' mean, or of a sum in which each row has a factor."""
    total = losses.mean() if factors is None else (losses * factors).sum()
    return list(torch.autograd.grad(total, [x for x in of if x is not None], retain_graph=True))


@pytest.mark.parametrize("loss", LOSSES, ids=[str(tuple(loss[1:5])) for loss in LOSSES])
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_losses_predictions_and_gradients_are_those_of_all_logits(loss: Loss, has_bias: bool) -> None:
    hidden, weight, bias, targets = given(has_bias)
    exact, tokens = plain(hidden, weight, bias, targets, loss)
    found = linear_cross_entropy(hidden, weight, bias, targets, loss)
    assert torch.allclose(found.rows, exact, rtol=1e-12)
    assert found.tokens.tolist() == tokens.tolist()
    uneven = torch.tensor([0.3, 0.7, 0.1], dtype=torch.float64)
    for factors in (None, uneven, None):  # the last time they have been used, and are made again
        pairs = zip(
            gradients(found.rows, factors, hidden, weight, bias),
            gradients(exact, factors, hidden, weight, bias),
            strict=True,
        )
        assert all(torch.allclose(ours, theirs, atol=1e-13) for ours, theirs in pairs)


class LargestInFp32(TorchDispatchMode):
    """Note the largest tensor in fp32 that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.float32:
            self.largest = max(self.largest, made.numel())
        return made


def test_no_logits_of_all_tokens_are_made_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with FakeTensorMode(), LargestInFp32() as watch, torch.autocast("cpu", torch.bfloat16):
        hidden, weight = torch.empty(8, 1024, 64, requires_grad=True), torch.empty(128_000, 64, requires_grad=True)
        targets = torch.zeros(8, 1024, dtype=torch.long)
        linear_cross_entropy(hidden, weight, None, targets, Loss(128_000)).rows.sum().backward()
    assert watch.largest == max(chunks.FEWEST_TOKENS * 128_000, weight.numel())


FAMILIES = {
    "llama": {},
    "gpt2": {},
    "gemma2": {"head_dim": 16, "num_key_value_heads": 2, "final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gptj": {"n_embd": 32, "n_head": 2, "n_layer": 2, "rotary_dim": 8},
    "phi": {},
}
"""Decoders, with keys that change what becomes of the last layer's outputs."""


@pytest.mark.parametrize("model_type", FAMILIES)
def test_decoders_give_the_losses_and_gradients_of_their_logits(model_type: str) -> None:
    ids = torch.randint(3, 90, (2, 13), generator=torch.Generator().manual_seed(0))
    config = AutoConfig.for_model(model_type, **SMALL, **FAMILIES[model_type])
    setattr(config, UNPADDED, 91)
    assert suits(build(config, "AutoModelForCausalLM", 0))
    assert_alike(lambda: build(config, "AutoModelForCausalLM", 0), ids[:, 1:], input_ids=ids[:, :-1])


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "electra"])
def test_encoders_do_at_scored_places_alone(model_type: str) -> None:
    ids, labels = masked()
    assert suits(encoder(model_type))
    assert_alike(lambda: encoder(model_type), labels, max_scored=5, input_ids=ids)


@pytest.mark.parametrize("name", BOTH)
def test_encoder_decoders_do(name: str) -> None:
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    assert suits(both(name))
    assert_alike(lambda: both(name), ids[:, :7], input_ids=ids)


def assert_alike(make, labels: Tensor, max_scored: int | None = None, **inputs: Tensor) -> None:  # type: ignore[no-untyped-def]
    found = []
    for chunked in (False, True):
        model = make().double().train(False)
        network = LanguageModel(model, max_scored, label_smoothing=0.1, z_loss=0.01, chunks_loss=chunked)
        network.training = True  # the loss', and no dropout
        predicted = network(labels, predict=True, **inputs)
        predicted.row_losses.sum().backward()
        found.append([*predicted[:2], *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(*found, strict=True))


def test_a_head_that_does_more_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(AutoConfig.for_model("llama", **SMALL), "AutoModelForCausalLM", 0)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **how: forward(**how) | {"logits": forward(**how).logits * 2})
    assert not suits(model)


def test_devices_that_share_the_classes_have_the_loss_of_all(tmp_path: Path) -> None:
    run_ranks(shared_classes, 2, tmp_path)


def shared_classes(rank: int, world: int) -> None:
    chunks.CHUNK, chunks.FEWEST_TOKENS = {"cpu": 1}, 5
    half = PADDED // world
    for loss in LOSSES:
        hidden, weight, bias, targets = given(True)
        assert bias is not None
        exact, tokens = plain(hidden, weight, bias, targets, loss)
        exact.sum().backward()
        mine = slice(rank * half, rank * half + half)
        ours, part, added = (x.detach().clone().requires_grad_() for x in (hidden, weight[mine], bias[mine]))
        found = linear_cross_entropy(ours, part, added, targets, loss._replace(group=dist.group.WORLD))
        found.rows.sum().backward()
        assert torch.allclose(found.rows, exact, rtol=1e-12)
        assert found.tokens.tolist() == tokens.tolist()
        for here, everywhere in (
            (ours.grad, hidden.grad),
            (part.grad, weight.grad[mine]),
            (added.grad, bias.grad[mine]),
        ):  # type: ignore[index]
            assert torch.allclose(here, everywhere, atol=1e-13)  # type: ignore[arg-type]
