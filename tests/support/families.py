"""One small model of each family whose memory is planned."""

from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    JetMoeConfig,
    LlamaConfig,
    MixtralConfig,
    ModernBertConfig,
    NllbMoeConfig,
    PreTrainedConfig,
    SwitchTransformersConfig,
    T5Config,
)

from sslm.models.lstm import LstmConfig
from sslm.parallel.planning.kept import Kept

CAUSAL, MASKED, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
LENGTH, VOCABULARY = 64, 512
BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
BOTH = {"d_model": 64} | {
    f"{part}_{key}": size
    for part in ("encoder", "decoder")
    for key, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
}
"""Sizes of BART's kin."""
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = LlamaConfig(**BLOCKS, vocab_size=VOCABULARY, num_key_value_heads=2)
FAMILIES: dict[str, tuple[PreTrainedConfig, str]] = {
    "llama": (LLAMA, CAUSAL),
    "gpt2": (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, **IDS), CAUSAL),
    "bert": (BertConfig(**BLOCKS, vocab_size=VOCABULARY), MASKED),
    "modernbert": (
        ModernBertConfig(**BLOCKS, vocab_size=VOCABULARY, **IDS, cls_token_id=1, sep_token_id=2, local_attention=16),
        MASKED,
    ),
    "t5": (T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=VOCABULARY), SEQ2SEQ),
    "bart": (BartConfig(**BOTH, vocab_size=VOCABULARY), SEQ2SEQ),
    "lstm": (LstmConfig(hidden_size=64, vocab_size=VOCABULARY), CAUSAL),
    "mixtral": (MixtralConfig(**BLOCKS, vocab_size=VOCABULARY, num_local_experts=4, num_key_value_heads=2), CAUSAL),
    "jetmoe": (
        JetMoeConfig(**BLOCKS, vocab_size=VOCABULARY, num_local_experts=4, num_key_value_heads=2, kv_channels=16),
        CAUSAL,
    ),
    "switch": (
        SwitchTransformersConfig(
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            num_experts=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            vocab_size=VOCABULARY,
        ),
        SEQ2SEQ,
    ),
    "nllb": (
        NllbMoeConfig(
            **BOTH,
            encoder_layerdrop=0,
            decoder_layerdrop=0,
            num_experts=4,
            encoder_sparse_step=2,
            decoder_sparse_step=2,
            vocab_size=VOCABULARY,
        ),
        SEQ2SEQ,
    ),
}
SHAPES = {"input_ids": (LENGTH,), "labels": (LENGTH,)}


def everything(kept: Kept) -> float:
    return kept.outside + kept.inputs + kept.inside + kept.head
