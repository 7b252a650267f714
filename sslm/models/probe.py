"""A short text of any model's vocabulary, to try it on."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.masks import num_positions

PROBE_TOKENS = 32


def probe_tokens(model: PreTrainedModel, shift: int = 0) -> Tensor:
    """[1, PROBE_TOKENS] tokens other than padding, or as many as there are positions; another `shift` gives others."""
    config = model.config
    most = num_positions(config) or PROBE_TOKENS
    allowed = torch.tensor([n for n in range(config.vocab_size) if n != getattr(config, "pad_token_id", None)])
    chosen = torch.arange(min(PROBE_TOKENS, most)) * 7 + shift + 5
    return allowed[chosen % len(allowed)][None].to(model.device)
