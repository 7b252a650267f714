"""Label smoothing, z-loss, noise on embeddings and adversarial training: each against its formula, off by default."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig

from sslm.config import RobustConfig
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.training.adversarial import adversarial_losses, projected
from tests.support.models import BOTH, GATED, both, masked
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, losses_of

AUTO = {
    "llama": "AutoModelForCausalLM",
    "gpt2": "AutoModelForCausalLM",
    "sslm_lstm": "AutoModelForCausalLM",
    "bert": "AutoModelForMaskedLM",
    "modernbert": "AutoModelForMaskedLM",
    "deberta-v2": "AutoModelForMaskedLM",
}
FAMILIES = [*AUTO, *BOTH]


def network_of(family: str, **options: float) -> LanguageModel:
    if family in BOTH:
        model = both(family)
    else:
        settings = {k: v for k, v in GATED.items() if k in ("vocab_size", "hidden_size", "num_hidden_layers")}
        settings |= {} if family == "sslm_lstm" else {"num_attention_heads": 2}
        config = AutoConfig.for_model(family, **settings, pad_token_id=0)
        for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if hasattr(config, key):
                setattr(config, key, 0.0)
        model = build(config, AUTO[family], 0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return LanguageModel(model.double(), **options).train()


def batch(family: str) -> dict[str, Tensor]:
    ids, labels = masked()
    return {"input_ids": ids, "labels": labels} | (
        {} if family == "sslm_lstm" else {"attention_mask": torch.ones_like(ids)}
    )


def gradients(network: LanguageModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True))  # type: ignore[arg-type]


def alike(ours: list[Any], theirs: list[Any], tolerance: float = 1e-9) -> bool:
    return all(
        (a is None and b is None) or torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_smoothing_and_z_loss_are_their_formulas_and_so_are_their_gradients() -> None:
    network, given = network_of("bert", label_smoothing=0.1, z_loss=1e-2), batch("bert")
    labels = given.pop("labels")
    logits = network(**given)
    log_p, scored = logits.log_softmax(-1), labels >= 0
    target = log_p.gather(2, labels.clamp(0)[..., None])[..., 0]
    per_token = -0.9 * target - 0.1 * log_p.mean(-1) + 1e-2 * logits.logsumexp(-1).square()
    expected = (per_token * scored).sum(1)
    ours = network(labels, **given)
    assert torch.allclose(ours, expected, rtol=1e-12)
    assert alike(gradients(network, ours.sum()), gradients(network, expected.sum()))
    network.eval()
    assert torch.allclose(network(labels, **given), -(target * scored).sum(1), rtol=1e-12)  # validation is told plainly


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_on_embeddings_is_neftunes_while_training_only(family: str) -> None:
    given = batch(family)
    plain, noisy = network_of(family), network_of(family, embedding_noise=5.0)
    seen: list[Tensor] = []
    torch.manual_seed(0)
    reader = noisy.model.get_encoder() if noisy.model.config.is_encoder_decoder else noisy.model
    reader.get_input_embeddings().register_forward_hook(lambda module, arguments, output: seen.append(output))
    losses = noisy(**given)
    noise = seen[0].detach() - F.embedding(given["input_ids"], reader.get_input_embeddings().weight.detach()) * getattr(
        reader.get_input_embeddings(), "embed_scale", 1.0
    )
    limit = 5 / (24 * 32) ** 0.5
    assert noise.abs().max() <= limit * (1 + 1e-9)
    assert noise.std() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert not torch.allclose(losses, plain(**given))
    assert torch.equal(noisy.eval()(**given), plain.eval()(**given))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["fgm", "pgd", "freelb"])
def test_adversarial_gradients_are_those_of_the_losses_they_stand_for(kind: str, family: str) -> None:
    network, given = network_of(family), batch(family)
    how = RobustConfig(adversarial=kind, epsilon=0.3, adversarial_steps=2)  # type: ignore[arg-type]
    passes: list[bool] = []

    def backward(loss: Tensor, is_last: bool) -> None:
        passes.append(is_last)
        loss.backward()

    losses = adversarial_losses(network, given, how, 7, backward)
    assert passes == {"fgm": [False, True], "pgd": [True], "freelb": [False, True]}[kind]
    ours = [p.grad for p in network.parameters()]
    places = reference(network, given, kind)
    total = sum((loss_at(network, given, place) for place in places), torch.zeros(3, dtype=torch.float64)) / len(places)
    assert torch.allclose(losses, total, rtol=1e-9)
    assert alike(ours, gradients(network, total.sum()), 1e-8)
    if kind != "freelb":
        assert losses.sum() > loss_at(network, given, torch.zeros_like(places[0])).sum()  # uphill


def loss_at(network: LanguageModel, given: dict[str, Tensor], place: Tensor) -> Tensor:
    network.perturbation = place
    losses: Tensor = network(**given)
    network.perturbation = None
    return losses


def reference(network: LanguageModel, given: dict[str, Tensor], kind: str, epsilon: float = 0.3) -> list[Tensor]:
    """The perturbations at which the papers take losses, row by row."""

    def uphill(place: Tensor, step: float) -> Tensor:
        place = place.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_at(network, given, place).sum(), place)
        return torch.stack([row + step * grad / grad.norm() for row, grad in zip(place.detach(), g, strict=True)])

    def inside(place: Tensor) -> Tensor:
        return torch.stack([row if row.norm() <= epsilon else row * epsilon / row.norm() for row in place])

    start = torch.zeros(3, 24, 32, dtype=torch.float64)
    if kind == "fgm":
        return [start, uphill(start, epsilon)]
    step = 2.5 * epsilon / 2
    if kind == "pgd":
        return [inside(uphill(inside(uphill(start, step)), step))]
    torch.manual_seed(7)
    start = torch.empty(3, 24, 32, dtype=torch.float64).uniform_(-1, 1) * epsilon / (24 * 32) ** 0.5
    return [start, inside(uphill(start, step))]


def test_projection_keeps_what_is_inside_and_shortens_what_is_not() -> None:
    rows = torch.stack([torch.full((2, 2), 0.1), torch.full((2, 2), 10.0)])
    assert torch.allclose(projected(rows, 1.0).flatten(1).norm(dim=1), torch.tensor([0.2, 1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["fgm", "pgd", "freelb"])
def test_two_processes_train_as_one(
    kind: str, strategy: str, train_tiny: TrainTiny, tiny: list[str], tmp_path: Path
) -> None:
    flags = [
        "--robust.adversarial",
        kind,
        "--robust.adversarial_steps",
        "2",
        "--robust.label_smoothing",
        "0.1",
        "--robust.z_loss",
        "1e-3",
    ]
    flags += ["--micro_batch_size", "1"]  # freelb's random start is a micro-batch's
    assert train_tiny(tmp_path / "one", *flags) == 0
    more = ["--strategy", strategy, "--devices", "2", "--run_dir", str(tmp_path / "two")]
    done = train_forked([*tiny, *flags, *more], tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=2e-6)
    assert losses_of(tmp_path / "one")[0] != pytest.approx(6.24, abs=1e-3)
