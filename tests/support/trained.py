"""Small models with random weights in Hugging Face folders, each with a tokenizer, to measure and to use."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from sslm.data.corpus.tokenizer import Tokenizer, num_ids, special_ids
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.stream.vocabulary import SpecialTokens, extended
from sslm.models.build import build

WORDS = ["the", "cat", "sat", "on", "a", "mat", "##s", "##ting", ".", "dog", "##g", "##y"]
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, **HEADS, "initializer_range": 0.5},
    "bert": {"hidden_size": 16, "intermediate_size": 32, **HEADS, "initializer_range": 0.5},
    "sslm_lstm": {"hidden_size": 16, "num_hidden_layers": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
AUTO = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}


def byte_level(text: str, size: int = 300) -> Tokenizer:
    return train_bpe([(text, True)], size)


def word_piece() -> Tokenizer:
    """Lower case, with [CLS] and [SEP] around a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_model(folder: Path, model_type: str, tokenizer: Tokenizer, positions: int = 16, **keys: Any) -> Path:
    """Write a model of an architecture, and its tokenizer; those of both halves get sentinels."""
    if model_type == "t5":
        tokenizer = extended(tokenizer, SpecialTokens(pad=True, sentinels=4))
    settings = SIZES[model_type] | ({"max_position_embeddings": positions} if model_type in ("llama", "bert") else {})
    settings |= {"decoder_start_token_id": tokenizer.pad_token_id} if model_type == "t5" else {}
    ids = {name: number for name, number in special_ids(tokenizer).items() if number is not None}
    config = AutoConfig.for_model(model_type, vocab_size=num_ids(tokenizer), **settings, **ids, **keys)
    build(config, AUTO.get(model_type, "AutoModelForCausalLM"), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
