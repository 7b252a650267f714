"""Small models to test with."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, T5GemmaConfig

from sslm.data.stream.recipe import IGNORED
from sslm.models.build import build

GATED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
}


BOTH: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 96,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "t5-untied": {
        "vocab_size": 96,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
        "scale_decoder_outputs": False,
    },
    "bart": {
        "vocab_size": 96,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
    "t5gemma": {"encoder": GATED, "decoder": {**GATED, "is_decoder": True}, "vocab_size": 96},
}


def both(name: str) -> PreTrainedModel:
    model_type = name.split("-")[0]
    config = T5GemmaConfig(**BOTH[name]) if model_type == "t5gemma" else AutoConfig.for_model(model_type, **BOTH[name])
    model = build(config, "AutoModelForSeq2SeqLM", 0).eval()
    if name == "bart":
        model.final_logits_bias.copy_(torch.linspace(-1, 1, 96))
    return model


def masked(n: int = 3, length: int = 24, num: int = 5) -> tuple[Tensor, Tensor]:
    """Ids, and labels at `num` places of each row, but for the last row, which has two."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 96, (n, length), generator=generator)
    labels = torch.full_like(ids, IGNORED)
    for row in range(n):
        places = torch.randperm(length, generator=generator)[: num if row < n - 1 else 2]
        labels[row, places] = ids[row, (places + 1) % length]
    return ids, labels
