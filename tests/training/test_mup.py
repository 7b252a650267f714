"""Maximal update parametrization: what it scales, and that activations move alike in models of any width."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sslm.config import OptimConfig
from sslm.models.build import build
from sslm.training import mup
from sslm.training.optimizers.build import build_optimizer
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, losses_of

BASE, TIMES = 32, 8
UNTIED = ["--model.tie_word_embeddings", "false"]


def llama(width: int) -> LlamaForCausalLM:
    heads = width // 16
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    return build(config, "AutoModelForCausalLM", 0)  # type: ignore[return-value]


def moved(width: int, optimizer: str, is_scaled: bool) -> Tensor:
    """How far a few steps move the last hidden states and the logits, root mean squares."""
    model, ids = llama(width), torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(0))
    rates = mup.rates(model, BASE, optimizer) if is_scaled else None
    if is_scaled:
        mup.scale_first_weights(model, BASE)
    stepping = build_optimizer(model, OptimConfig(name=optimizer, lr=1e-2, weight_decay=0.0), rates=rates)  # type: ignore[arg-type]

    def activations() -> list[Tensor]:
        found = model(input_ids=ids, output_hidden_states=True)
        return [found.hidden_states[-2].detach(), found.logits.detach()]

    before = activations()
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        stepping.step()
        stepping.zero_grad()
    return torch.stack([(now - was).square().mean().sqrt() for now, was in zip(activations(), before, strict=True)])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_activations_move_alike_whatever_the_width(optimizer: str) -> None:
    scaled = moved(TIMES * BASE, optimizer, True) / moved(BASE, optimizer, True)
    plain = moved(TIMES * BASE, optimizer, False) / moved(BASE, optimizer, False)
    assert scaled.max() < 2
    assert scaled.min() > 0.5
    assert plain.max() > 2.5


def test_at_the_base_width_nothing_changes() -> None:
    model = llama(BASE)
    before = [p.detach().clone() for p in model.parameters()]
    mup.scale_first_weights(model, BASE)
    assert all(map(torch.equal, before, model.parameters()))
    assert set(mup.rates(model, BASE, "adamw").values()) == {1.0}


def test_strategies_scale_alike_and_a_run_goes_on(train_tiny: TrainTiny, tiny: list[str], tmp_path: Path) -> None:
    flags = [*UNTIED, "--optim.mup", "8"]
    assert train_tiny(tmp_path / "one", *flags) == 0
    assert train_tiny(tmp_path / "plain", *UNTIED) == 0
    assert train_tiny(tmp_path / "run", *flags, "--stop_after", "3steps") == 75
    assert train_tiny(tmp_path / "run", *flags) == 0
    two = [*tiny, *flags, "--strategy", "fsdp", "--devices", "2", "--run_dir", str(tmp_path / "two")]
    assert train_forked(two, tmp_path / "log").returncode == 0
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "one") != losses_of(tmp_path / "plain")
    assert train_tiny(tmp_path / "run", *UNTIED, "--optim.mup", "16") == 2


def test_tied_heads_and_adafactor_are_refused(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path / "run", "--optim.mup", "8") == 2
    assert "give --model.tie_word_embeddings false" in capsys.readouterr().err
    assert train_tiny(tmp_path / "run", *UNTIED, "--optim.mup", "8", "--optim.name", "adafactor") == 2
    assert "adafactor's updates follow the size" in capsys.readouterr().err
