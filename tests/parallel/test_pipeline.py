"""Devices that have some blocks each: losses, predictions and gradients are those of one process, in fp64."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import BloomConfig, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from sslm.models.build import build
from sslm.models.task import network_for
from sslm.parallel.pipeline import Pipeline, suits_pipeline
from sslm.parallel.recompute import Recompute, recompute
from sslm.training.optimizers.clipping import gradient_norm
from tests.support.processes import run_ranks

SIDES = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
LLAMA = LlamaConfig(**SIDES, num_attention_heads=4, num_key_value_heads=2)
GPT2 = GPT2Config(
    vocab_size=20,
    bos_token_id=0,
    eos_token_id=0,
    n_embd=32,
    n_layer=3,
    n_head=4,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
    tie_word_embeddings=True,
)


def compare(rank: int, world: int, config: PreTrainedConfig, kind: str, num_micro_batches: int) -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 20, (2, 4, 24)).unbind()
    labels[:, :5] = -100
    whole, model = (build(config, "AutoModelForCausalLM", 0).double().train() for _ in range(2))
    one, several = network_for(whole), network_for(model)
    group = dist.group.WORLD
    assert group is not None
    Pipeline(several, model, group)
    recompute(model, Recompute(kind))  # type: ignore[arg-type]
    numbers: list[int] = []
    losses = one(input_ids=ids, labels=labels)
    (losses.sum() * 3).backward()
    tensors = {"input_ids": ids, "labels": labels}
    shared = several.pipeline.step(tensors, 4 // num_micro_batches, 3.0, numbers.append)
    assert numbers == list(range(num_micro_batches))
    with torch.no_grad():
        found = [several(**tensors, predict=True), several(**tensors), several(input_ids=ids)]
        expected = [one(**tensors, predict=True), one(**tensors), one(input_ids=ids)]
    found += [shared, gradient_norm(several.pipeline.counted(model.parameters()), group)]
    expected += [losses, gradient_norm(whole.parameters())]
    weights = dict(whole.named_parameters())
    for name, weight in model.named_parameters():
        found.append(weight.grad)
        expected.append(weights[name].grad)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    total = torch.tensor(sum(weight.numel() for weight in several.pipeline.counted(model.parameters())))
    dist.all_reduce(total)
    assert total == whole.num_parameters()


@pytest.mark.parametrize(
    ("config", "world", "kind", "num_micro_batches"),
    [(LLAMA, 3, "none", 4), (GPT2, 3, "full", 4), (LLAMA, 2, "selective", 2)],
)
def test_several_ranks_have_the_losses_and_gradients_of_one(
    config: PreTrainedConfig, world: int, kind: str, num_micro_batches: int, tmp_path: Path
) -> None:
    run_ranks(compare, world, tmp_path, config, kind, num_micro_batches)


@pytest.mark.parametrize(
    ("config", "suits"),
    [
        (LLAMA, True),
        (GPT2, True),
        (Qwen3Config(**SIDES, num_attention_heads=4, num_key_value_heads=2, head_dim=8), True),
        (BloomConfig(vocab_size=20, hidden_size=32, n_layer=2, n_head=4, tie_word_embeddings=False), False),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_suits_if_a_cut_one_gives_the_same(config: PreTrainedConfig, suits: bool) -> None:
    assert suits_pipeline(build(config, "AutoModelForCausalLM", 0)) == suits
