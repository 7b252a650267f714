"""Pruning once: the least go, the shape of what goes is the pattern's, and what is shrunken computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sslm.models.build import build
from sslm.models.compression.pruning.check import outputs
from sslm.models.compression.pruning.masks import highest, matrix_mask
from sslm.models.compression.pruning.matrices import matrices
from sslm.models.compression.pruning.prune import prune
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.compression.pruning.shrink import shrink
from sslm.system.errors import UserError

GATED = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 96,
    "attention_bias": True,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "AutoModelForCausalLM", GATED),
    "llama-gqa": ("llama", "AutoModelForCausalLM", GATED | {"num_attention_heads": 8}),
    "qwen3": ("qwen3", "AutoModelForCausalLM", GATED | {"head_dim": 8}),
    "gpt2": ("gpt2", "AutoModelForCausalLM", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 96}),
    "gpt_neox": ("gpt_neox", "AutoModelForCausalLM", {k: v for k, v in GATED.items() if k != "num_key_value_heads"}),
    "bert": ("bert", "AutoModelForMaskedLM", {k: v for k, v in GATED.items() if k != "num_key_value_heads"}),
    "modernbert": (
        "modernbert",
        "AutoModelForMaskedLM",
        {k: v for k, v in GATED.items() if k != "num_key_value_heads"}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "t5": (
        "t5",
        "AutoModelForSeq2SeqLM",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "bart",
        "AutoModelForSeq2SeqLM",
        {"vocab_size": 96, "d_model": 32}
        | {
            f"{part}_{key}": n
            for part in ("encoder", "decoder")
            for key, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
        },
    ),
}


FIXED_HEADS = ("gpt2", "gpt_neox", "bert", "bart", "modernbert")
"""Their head's width follows from the number of heads."""


def small(name: str) -> PreTrainedModel:
    model_type, auto_class, keys = MODELS[name]
    model = build(AutoConfig.for_model(model_type, **keys), auto_class, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # no bias is 0, no norm 1
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def batches() -> list[dict[str, Tensor]]:
    ids = torch.arange(64).reshape(4, 16) % 90 + 3
    return [{"input_ids": ids, "attention_mask": (torch.arange(16) < 12).long().expand(4, 16)}]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *((name, pattern) for name in ("llama-gqa", "t5") for pattern in ("heads", "neurons", "layers")),
        *((name, pattern) for name in ("bert", "gpt2") for pattern in ("neurons", "layers")),
        ("qwen3", "heads"),
        ("modernbert", "neurons"),  # one matrix for gate and value
        ("bart", "layers"),
        *((name, "heads") for name in FIXED_HEADS),
    ],
)
def test_a_shrunken_folder_gives_the_masked_models_logits(name: str, pattern: Any, tmp_path: Path) -> None:
    model = small(name)
    if pattern == "heads" and name in FIXED_HEADS:
        with pytest.raises(UserError, match=f"config of {model.config.model_type} has no number of heads"):
            prune(model, Pruning(0.5, pattern=pattern))
        return
    prune(model, Pruning(0.5, pattern=pattern))
    smaller = shrink(model)
    assert smaller.num_parameters() < 0.95 * model.num_parameters()
    smaller.save_pretrained(tmp_path)
    loaded = getattr(transformers, MODELS[name][1]).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)


def test_exactly_so_many_go_whatever_is_equal() -> None:
    assert highest(torch.zeros(3, 10), 4).sum(-1).tolist() == [6, 6, 6]
    assert highest(torch.full((1, 5), -torch.inf), 5).sum() == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize(("pattern", "within"), [("2:4", 4), ("4:8", 8)])
def test_of_neighbours_that_an_output_reads_half_go(name: str, method: Any, pattern: Any, within: int) -> None:
    model = small(name)
    masks = prune(model, Pruning(0.5, method, pattern), batches())
    for weight, matrix in matrices(model).items():
        mask = matrix.by_row(masks[weight])
        assert (mask.reshape(-1, within).sum(-1) == within // 2).all()
        assert not matrix.layer.weight[~masks[weight]].any()
    assert set(masks) == set(matrices(model))


@pytest.mark.parametrize(("within", "numbers"), [(4, [0, 0, 1, 1, 2, 2]), (8, [0, 1, 1, 2, 3, 4])])
def test_of_neighbours_as_many_go_as_are_nearest_to_the_share(within: int, numbers: list[int]) -> None:
    shares = [0, 0.12, 0.13, 0.3, 0.38, 0.5]
    masks = [matrix_mask(torch.rand(2, within), share, within, by_row=False) for share in shares]
    assert [int((~mask).sum()) // 2 for mask in masks] == numbers


def test_magnitude_takes_the_smallest_of_each_matrix() -> None:
    model = small("bert")
    before = {name: matrix.layer.weight.detach().clone() for name, matrix in matrices(model).items()}
    for name, mask in prune(model, Pruning(0.3)).items():
        assert int(mask.numel() - mask.sum()) == int(0.3 * mask.numel() + 1e-9)
        assert before[name][~mask].abs().max() <= before[name][mask].abs().min()


def test_wanda_compares_weight_times_norm_of_the_input_row_by_row_without_padding() -> None:
    model, batch = small("gpt2"), batches()[0]
    layer = model.transformer.h[1].mlp.c_proj
    read: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    tokens = read[0][batch["attention_mask"].bool()]
    scores = (layer.weight.abs() * tokens.norm(dim=0)[:, None]).T
    expected = matrix_mask(scores, 0.5, None, by_row=True).T
    masks = prune(model, Pruning(0.5, "wanda"), [batch])
    torch.testing.assert_close(masks["transformer.h.1.mlp.c_proj.weight"], expected)


@pytest.mark.parametrize(
    ("name", "sparsity", "method", "pattern", "said"),
    [
        ("llama", 1.0, "magnitude", "unstructured", "prune.sparsity 1.0: expected a share above 0 and below 1"),
        ("llama", 0.0, "magnitude", "unstructured", "expected a share above 0 and below 1"),
        ("llama", float("nan"), "magnitude", "unstructured", "expected a share above 0 and below 1"),
        ("llama", 0.6, "magnitude", "2:4", "prune.pattern 2:4 is a sparsity of 0.5; give that"),
        ("llama", 0.5, "size", "unstructured", "prune.method size: expected magnitude, movement, wanda"),
        ("llama", 0.5, "magnitude", "1:4", "prune.pattern 1:4: expected unstructured, 2:4"),
        ("llama", 0.5, "movement", "unstructured", "only training can tell it; give magnitude or wanda"),
        ("llama", 0.5, "wanda", "unstructured", "needs text to calibrate with"),
        ("llama", 0.2, "magnitude", "heads", "is less than one of 4 heads; give 0.25 or more"),
        ("llama", 0.25, "magnitude", "heads", "num_key_value_heads that leaves 3 of 4 heads; give 0.5 or 0.75"),
        ("uneven", 0.5, "magnitude", "4:8", "has 12 inputs, which 8 does not divide; give unstructured"),
    ],
)
def test_what_cant_be_is_refused_in_a_sentence(
    name: str, sparsity: float, method: Any, pattern: Any, said: str
) -> None:
    MODELS["uneven"] = ("llama", "AutoModelForCausalLM", GATED | {"intermediate_size": 12})
    model = small(name)
    with pytest.raises(UserError) as error:
        prune(model, Pruning(sparsity, method, pattern))
    assert said in str(error.value)


def test_a_model_without_zeros_stays() -> None:
    model = small("t5")
    assert shrink(model) is model
