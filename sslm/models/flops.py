"""FLOPs of a training step in closed form."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys under which configs have the number of a layer's experts."""


def matmul_parameters(model: nn.Module) -> int:
    """Count weights that multiply a token's activations: the head's too, but not embeddings that are only looked up.

    Of a mixture's experts those count that a token is sent to.
    """
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    return linear + round(sum(p.numel() for p in of_experts(model)) * share_of_experts(model))


def of_experts(model: nn.Module) -> list[nn.Parameter]:
    """Weights of a mixture's experts; transformers has one tensor [experts, …, …] for each matrix."""
    experts = num_experts(model)
    return [p for p in model.parameters() if experts and p.ndim == 3 and p.shape[0] == experts]


def num_experts(model: nn.Module) -> int:
    """Number of experts in a layer, 0 if there are none."""
    config = getattr(model, "config", None)
    return next((n for key in EXPERTS if (n := getattr(config, key, None))), 0)


def share_of_experts(model: nn.Module) -> float:
    """Share of the experts that work on one token."""
    experts = num_experts(model)
    return (getattr(model.config, "num_experts_per_tok", None) or 1) / experts if experts else 0.0


def active_matmul_parameters(model: PreTrainedModel, scored_share: float = 1.0) -> float:
    """Count weights that multiply a token's activations on average, if the head works on scored places alone.

    >>> import torch
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> with torch.device("meta"):
    ...     bert = BertForMaskedLM(BertConfig())
    >>> round(flops_per_token(bert.config, active_matmul_parameters(bert, 0.15), 512) / 1e6)
    588
    """
    everything, body = matmul_parameters(model), matmul_parameters(model.base_model)
    return body + scored_share * (everything - body)


def flops_per_token(config: PreTrainedConfig, num_matmul: float, seq_len: int) -> float | None:
    """Forward and backward FLOPs per token of a decoder or encoder (PaLM, Chowdhery et al. 2022, appendix B).

    6·N + 12·L·H·Q·T, with N matmul parameters, L layers, H·Q heads times head size, and T seq_len; causal attention is
    counted in full. None if an architecture has no attention heads, or both encoder and decoder
    (`encoder_decoder_flops`).

    >>> from transformers import GPT2Config
    >>> round(flops_per_token(GPT2Config(), 12 * 7_077_888 + 50257 * 768, 1024) / 1e6)
    854
    """
    if not hasattr(config, "num_attention_heads") or config.is_encoder_decoder:
        return None
    head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head_size * seq_len
    return float(6 * num_matmul + 12 * attention)


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
    heads = decoder.num_attention_heads
    head_size: int = getattr(decoder, "head_dim", None) or decoder.hidden_size // heads
    kv_width = (getattr(decoder, "num_key_value_heads", None) or heads) * head_size
    keys_values = 2 * decoder_layers * encoder.hidden_size * kv_width
    num_encoder = matmul_parameters(model.get_encoder())
    num_decoder = matmul_parameters(model) - num_encoder - keys_values
    attention = heads * head_size * (layers * source_len**2 + decoder_layers * (target_len + source_len) * target_len)
    return float(6 * ((num_encoder + keys_values) * source_len + num_decoder * target_len) + 12 * attention)


def flops_per_sequence(
    model: PreTrainedModel, input_len: int, target_len: int, max_scored: int | None = None
) -> float | None:
    """Forward and backward FLOPs of one row of a batch, or None if no formula here holds.

    The row has `input_len` tokens and `target_len` labels; the head works on `max_scored` places, or on all if None.
    """
    if model.config.is_encoder_decoder:
        return encoder_decoder_flops(model, input_len, target_len)
    num_matmul = active_matmul_parameters(model, (max_scored or target_len) / target_len)
    per_token = flops_per_token(model.config, num_matmul, input_len)
    return None if per_token is None else per_token * input_len
