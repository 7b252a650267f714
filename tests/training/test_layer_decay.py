"""Learning rates by depth, of every kind of architecture."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sslm.config import OptimConfig
from sslm.system.errors import UserError
from sslm.training.layer_decay import check_layer_decay, rates
from sslm.training.optimizers.build import build_optimizer
from sslm.training.optimizers.groups import set_learning_rate

SMALL: dict[str, Any] = {"vocab_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 4}
OF_T5: dict[str, Any] = {"vocab_size": 16, "d_model": 4, "d_ff": 4, "d_kv": 4, "num_layers": 2, "num_heads": 1}
HALF, QUARTER, EIGHTH = 0.5, 0.25, 0.125


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (
            "BertForSequenceClassification",
            transformers.BertConfig(**SMALL, intermediate_size=4),
            {"embeddings.LayerNorm": EIGHTH, "layer.0.": QUARTER, "layer.1.": HALF, "pooler": 1, "classifier": 1},
        ),
        (
            "GPT2LMHeadModel",
            transformers.GPT2Config(n_layer=2, n_embd=4, n_head=1, vocab_size=16),
            {"wte": EIGHTH, "wpe": EIGHTH, "h.0.": QUARTER, "h.1.": HALF, "ln_f": 1},
        ),
        (
            "T5ForConditionalGeneration",
            transformers.T5Config(**OF_T5, num_decoder_layers=3),
            {
                "shared": 0.0625,
                "encoder.block.0.": QUARTER,
                "encoder.block.1.": HALF,
                "decoder.block.0.": EIGHTH,
                "decoder.block.2.": HALF,
                "final_layer_norm": 1,
            },
        ),
        (
            "GPTNeoXForCausalLM",
            transformers.GPTNeoXConfig(**SMALL, intermediate_size=4),
            {"embed_in": EIGHTH, "layers.0.": QUARTER, "layers.1.": HALF, "final_layer_norm": 1, "lm_head": 1},
        ),
    ],
)
def test_deeper_layers_have_lower_rates(kind: str, config: Any, expected: dict[str, float]) -> None:
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    found = rates(model, 0.5)
    for name, parameter in model.named_parameters():
        for part, rate in expected.items():
            if part in name:
                assert found[parameter] == rate, name
    assert all(any(part in name for name, _ in model.named_parameters()) for part in expected)


def test_the_schedule_is_scaled_group_by_group() -> None:
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    scaled = {first.weight: 0.5, last.weight: 1.0}
    optimizer = build_optimizer(nn.Sequential(first, last), OptimConfig(lr=1.0), rates=scaled)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    set_learning_rate(optimizer.param_groups, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_what_has_no_blocks_is_refused() -> None:
    with torch.device("meta"):
        albert = transformers.AlbertForMaskedLM(transformers.AlbertConfig(hidden_size=4, num_attention_heads=1))
    with pytest.raises(UserError, match="albert's layers can't be told apart; leave it out"):
        check_layer_decay(albert)
