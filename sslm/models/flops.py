"""FLOPs of a training step in closed form, as MFU counts them (PaLM, Chowdhery et al. 2022, appendix B).

Matmuls count, forward and backward; norms, softmax and other elementwise work does not, nor does what is computed a
second time. Causal attention counts in full, a sliding window with the places it reaches. Of a mixture those experts
count that a token is sent to.
"""

import math
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys under which configs have the number of a layer's experts."""
WINDOWS = ("local_attention", "sliding_window", "attention_chunk_size")
"""Keys under which configs have the number of places that a layer attends to, if not to all."""
HEAD_SIZES = ("head_dim", "d_kv")
"""Keys under which configs have the size of a head, if it is not the width over the heads."""
CONVENTION = "matmuls alone, causal attention in full, padding not at all"
"""What MFU counts, in words."""


def matmul_parameters(model: nn.Module) -> int:
    """Count weights that multiply a token's activations: the head's too, but not embeddings that are only looked up.

    Those of an RNN, of a convolution over tokens and of a mixture's router are among them. Of a mixture's experts those
    count that a token is sent to. Layers that share their weights (ALBERT) count each.
    """
    experts = of_experts(model)
    config: Any = getattr(model, "config", None)
    shared: list[Any] = [module for name, module in model.named_modules() if name.endswith("albert_layer_groups")]
    again: int = sum(_weights(module, []) * (config.num_hidden_layers // len(module) - 1) for module in shared)
    return _weights(model, experts) + again + round(sum(p.numel() for p in experts) * share_of_experts(model))


def _weights(model: nn.Module, without: list[nn.Parameter]) -> int:
    """Count matrices called weight…, and convolutions' kernels."""
    left_out = set(map(id, without))
    modules = {m for m in model.modules() if not isinstance(m, nn.Embedding)}
    named = [(m, name, p) for m in modules for name, p in m.named_parameters(recurse=False) if id(p) not in left_out]
    return sum(
        p.numel() for m, name, p in named if name.startswith("weight") and (p.ndim == 2 or isinstance(m, nn.Conv1d))
    )


def of_experts(model: nn.Module) -> list[nn.Parameter]:
    """Matrices of a mixture's experts: transformers has tensors [experts, …, …], or (Switch) modules called experts."""
    experts = num_experts(model)
    if not experts:
        return []
    return [
        p
        for name, p in model.named_parameters()
        if (p.ndim == 3 and p.shape[0] == experts) or (p.ndim == 2 and ".experts." in name and name.endswith("weight"))
    ]


def num_experts(model: nn.Module) -> int:
    """Number of experts in a layer, 0 if there are none."""
    config = getattr(model, "config", None)
    return next((n for key in EXPERTS if (n := getattr(config, key, None))), 0)


def share_of_experts(model: nn.Module) -> float:
    """Share of the experts that work on one token."""
    experts = num_experts(model)
    return (getattr(model.config, "num_experts_per_tok", None) or 1) / experts if experts else 0.0


def active_matmul_parameters(model: PreTrainedModel, scored_share: float = 1.0) -> float:
    """Count weights that multiply a token's activations on average, if the head works on scored places alone."""
    everything, body = matmul_parameters(model), matmul_parameters(model.base_model)
    return body + scored_share * (everything - body)


def flops_per_token(model: PreTrainedModel, seq_len: int, scored_share: float = 1.0) -> float:
    """Forward and backward FLOPs per token of a model that is an encoder or a decoder.

    6·N + 12·Σ H·Q·min(T, W) + 12·Σ D·S. N: matmul parameters. The first sum is over layers with attention, H·Q: heads
    times head size, T: seq_len, W: the layer's window. The second is over layers with a state space (Mamba), whose
    state of D channels times S is written and read once a token.

    >>> import torch
    >>> from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
    >>> with torch.device("meta"):
    ...     gpt2, bert = GPT2LMHeadModel(GPT2Config()), BertForMaskedLM(BertConfig())
    >>> round(flops_per_token(gpt2, 1024) / 1e6), round(flops_per_token(bert, 512, 0.15) / 1e6)
    (854, 588)
    """
    reach = sum(min(seq_len, window) for window in attention_windows(model.config))
    mixers: list[Any] = [module for module in model.modules() if hasattr(module, "ssm_state_size")]
    states = sum(mixer.intermediate_size * mixer.ssm_state_size for mixer in mixers)
    width = attention_width(model.config)
    return 6 * active_matmul_parameters(model, scored_share) + 12 * float(width * reach + states)


def attention_windows(config: PreTrainedConfig) -> list[float]:
    """For each layer that attends: the number of places it reaches, without end if it is all."""
    if not getattr(config, "num_attention_heads", None):
        return []
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    window = next((n for key in WINDOWS if (n := getattr(config, key, None))), math.inf)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else math.inf] * config.num_hidden_layers
    attending = [kind for kind in kinds if ("attention" in kind and "linear" not in kind) or kind == "hybrid"]
    return [window if kind in ("sliding_attention", "chunked_attention") else math.inf for kind in attending]


def attention_width(config: PreTrainedConfig) -> float:
    """Heads times head size; the mean of keys' and values' if they differ (multi-head latent attention)."""
    if not (heads := getattr(config, "num_attention_heads", None)):
        return 0.0
    head_size = next((n for key in HEAD_SIZES if (n := getattr(config, key, None))), config.hidden_size // heads)
    if nope := getattr(config, "qk_nope_head_dim", None):
        head_size = (nope + config.qk_rope_head_dim + config.v_head_dim) / 2
    return float(heads * head_size)


def encoder_decoder_flops(model: PreTrainedModel, source_len: int, target_len: int) -> float:
    """Forward and backward FLOPs per sequence of a model with an encoder and a decoder.

    6·[P_enc·S + P_kv·S + (P − P_enc − P_kv)·D] + 12·H·Q·[L_enc·S² + L_dec·(D² + S·D)]

    S: source_len, D: target_len, P: matmul parameters with the head's, P_enc: the encoder's, P_kv: those of the
    cross-attention's keys and values, which the decoder makes of the encoder's tokens, L: layers, H·Q: heads times head
    size.

    >>> import torch
    >>> from transformers import T5Config, T5ForConditionalGeneration
    >>> v1_1 = T5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu")
    >>> with torch.device("meta"):
    ...     t5 = T5ForConditionalGeneration(v1_1)
    >>> round(encoder_decoder_flops(t5, 512, 114) / 1e9)
    426
    """
    encoder, decoder = (getattr(model.config, half, model.config) for half in ("encoder", "decoder"))
    layers, decoder_layers = encoder.num_hidden_layers, decoder.num_hidden_layers
    for key in ("num_decoder_layers", "decoder_layers"):  # of T5, of BART
        decoder_layers = getattr(decoder, key, None) or decoder_layers
    width, heads = attention_width(decoder), decoder.num_attention_heads
    kv_width = width * (getattr(decoder, "num_key_value_heads", None) or heads) / heads
    keys_values = 2 * decoder_layers * encoder.hidden_size * kv_width
    num_encoder = matmul_parameters(model.get_encoder())
    num_decoder = matmul_parameters(model) - num_encoder - keys_values
    attention = width * (layers * source_len**2 + decoder_layers * (target_len + source_len) * target_len)
    return float(6 * ((num_encoder + keys_values) * source_len + num_decoder * target_len) + 12 * attention)


def flops_per_sequence(model: PreTrainedModel, input_len: int, target_len: int, max_scored: int | None = None) -> float:
    """Forward and backward FLOPs of one row of a batch.

    The row has `input_len` tokens and `target_len` labels; the head works on `max_scored` places, or on all if None.
    """
    if model.config.is_encoder_decoder:
        return encoder_decoder_flops(model, input_len, target_len)
    return input_len * flops_per_token(model, input_len, (max_scored or target_len) / target_len)
