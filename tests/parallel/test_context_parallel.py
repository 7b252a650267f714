"""Devices that share each row: losses, predictions and gradients are those of one process, in fp64."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import BloomConfig, GPT2Config, LlamaConfig, MambaConfig, MistralConfig, PreTrainedConfig, Qwen3Config

from sslm.models import linear_cross_entropy
from sslm.models.build import build
from sslm.models.task import network_for
from sslm.parallel.context_parallel import share_rows, suits_shared_rows
from sslm.parallel.recompute import Recompute, recompute
from tests.support.processes import run_ranks

SIDES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA = LlamaConfig(**SIDES, num_attention_heads=4, num_key_value_heads=2)
GPT2 = GPT2Config(
    vocab_size=100,
    bos_token_id=0,
    eos_token_id=0,
    n_embd=32,
    n_layer=2,
    n_head=4,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
)


def compare(rank: int, world: int, config: PreTrainedConfig, kind: str, tolerance: float) -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 100, (2, 2, 12 * world)).unbind()
    labels[:, :5] = -100
    found = []
    linear_cross_entropy.CHUNK = {"cpu": 1}  # few tokens at a time, here by several ranks alone
    for is_shared in (False, True):
        model = build(config, "AutoModelForCausalLM", 0)
        network = network_for(model.double().train(), chunks_loss=is_shared)
        recompute(model, Recompute(kind))  # type: ignore[arg-type]
        if is_shared:
            assert dist.group.WORLD is not None
            share_rows(network, model, dist.group.WORLD)
        losses = network(input_ids=ids, labels=labels)
        losses.sum().backward()
        gradients = [weight.grad for weight in model.parameters()]
        for gradient in gradients if is_shared else []:
            dist.all_reduce(gradient)
            gradient /= world
        with torch.no_grad():
            predicted = network(input_ids=ids, labels=labels, predict=True)
            logits = network(input_ids=ids)
        found.append((losses, predicted.row_losses, predicted.tokens, logits, gradients))
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("config", "world", "kind", "tolerance"),
    [
        (LLAMA, 3, "none", 1e-6),  # its norms are in fp32
        pytest.param(LLAMA, 2, "full", 1e-6, marks=pytest.mark.slow),
        pytest.param(LLAMA, 2, "selective", 1e-6, marks=pytest.mark.slow),
        pytest.param(GPT2, 2, "none", 1e-9, marks=pytest.mark.slow),
    ],
)
def test_several_ranks_have_the_losses_and_gradients_of_one(
    config: PreTrainedConfig, world: int, kind: str, tolerance: float, tmp_path: Path
) -> None:
    run_ranks(compare, world, tmp_path, config, kind, tolerance)


@pytest.mark.parametrize(
    ("config", "suits"),
    [
        (LLAMA, True),
        (GPT2, True),
        (Qwen3Config(**SIDES, num_attention_heads=4, num_key_value_heads=2, head_dim=8), True),
        (MistralConfig(**SIDES, num_attention_heads=4, num_key_value_heads=2, sliding_window=4), False),
        (MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2), False),
        (BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4), False),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_suits_if_only_attention_looks_at_other_places(config: PreTrainedConfig, suits: bool) -> None:
    model = build(config, "AutoModelForCausalLM", 0)
    before = model.config._attn_implementation
    assert suits_shared_rows(model) == suits
    assert model.config._attn_implementation == before
