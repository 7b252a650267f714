"""Make an encoder–decoder of a pretrained decoder: both halves begin as the decoder (T5Gemma, arXiv:2504.06225).

    python examples/encoder_decoder.py runs/decoder/export halves

The decoder is a Gemma 2, whose blocks T5Gemma has too. Cross-attention begins as self-attention, and the encoder sees
both ways from now on; a short pretraining of the whole makes them used to it:
sslm train --objective span_corruption --model.pretrained halves.
"""

import sys
from dataclasses import fields

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
)

NORMS = {"input_layernorm": "pre_{}_layernorm", "post_attention_layernorm": "post_{}_layernorm"}
"""Norms around attention: what Gemma 2 calls them, and T5Gemma."""
IDS = ("pad_token_id", "eos_token_id", "bos_token_id")


def main(decoder: str, out: str) -> None:
    causal, tokenizer = AutoModelForCausalLM.from_pretrained(decoder), AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token or "<pad>"})  # an encoder needs it
    torch.manual_seed(0)  # of its embedding
    causal.resize_token_embeddings(len(tokenizer))
    model = T5GemmaForConditionalGeneration(config_of(causal.config, tokenizer.pad_token_id))
    tensors = {
        new: tensor
        for old, tensor in causal.model.state_dict().items()
        for half in ("encoder", "decoder")
        for new in names_in(half, old)
    }
    model.model.load_state_dict(tensors)
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def config_of(causal, pad_token_id: int) -> T5GemmaConfig:
    """Config of an encoder and a decoder that are both of a decoder's shape."""
    own = {field.name for field in fields(T5GemmaModuleConfig)} - {"architectures", "dtype", "is_decoder"}
    shape = {key: value for key, value in causal.to_dict().items() if key in own} | {"pad_token_id": pad_token_id}
    start = causal.eos_token_id if causal.bos_token_id is None else causal.bos_token_id
    across = {"cross_attention_hidden_size": causal.hidden_size}
    ids = {key: shape[key] for key in IDS} | {"decoder_start_token_id": start}
    return T5GemmaConfig(encoder=shape, decoder=shape | across, vocab_size=causal.vocab_size, **ids)


def names_in(half: str, name: str) -> list[str]:
    """Names in T5Gemma of one of the decoder's tensors."""
    kinds = ["self_attn"] if half == "encoder" else ["self_attn", "cross_attn"]
    if (norm := next((norm for norm in NORMS if norm in name), None)) is not None:
        return [f"{half}.{name.replace(norm, NORMS[norm].format(kind))}" for kind in kinds]
    return [f"{half}.{name.replace('self_attn', kind)}" for kind in (kinds if "self_attn" in name else kinds[:1])]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
