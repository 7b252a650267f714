"""Whether an architecture's documents keep apart: it is tried on a few tokens, since no list of names could tell."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.blocks import evaluating
from sslm.models.masks import EXPLICIT, document_logits, parameters
from sslm.models.probe import probe_tokens
from sslm.system.errors import UserError, one_line

EXPLICIT_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "indexed_attention"})
"""Of `config.layer_types`, those whose mask the table makes. What others do (convolutions, states, keys compressed over
many tokens) may show only in texts longer than the probe."""


@torch.no_grad()
def check_documents(model: PreTrainedModel) -> None:
    """Check on a few tokens that documents don't see each other, and that one alone comes out as without a mask.

    No list of names could tell: every architecture is tried, and UserError says what is wrong with it.
    """
    refused = f"--data.document_mask true: {model.config.model_type} can't keep documents apart"
    instead = "leave the flag out, or take an architecture such as llama, bert or t5"
    try:
        with evaluating(model):
            why = _unmasked(model) or _leak(model) or _otherwise(model)
    except Exception as error:  # each architecture has its own way not to take a mask
        why = f"{type(error).__name__}: {one_line(error)}"
    if why:
        raise UserError(f"{refused} ({why}); {instead}")


def _unmasked(model: PreTrainedModel) -> str:
    """Name what of an architecture is known to go past an explicit mask, if anything."""
    config = model.config
    if "segment_ids" in parameters(model):
        return ""
    if config._attn_implementation not in EXPLICIT:
        return f"{config._attn_implementation} attention takes no explicit mask"
    if others := set(getattr(config, "layer_types", None) or []) - EXPLICIT_LAYERS:
        return f"it has layers of type {', '.join(sorted(others))}"
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird's, on long texts only
        return "block-sparse attention makes masks of its own; --model.attention_type original_full doesn't"
    return ""


def _leak(model: PreTrainedModel) -> str:
    """Change each of two documents in turn and look at the other.

    The measure is what the same change does if both are one document.
    """
    ids, changed, segments = probe_tokens(model), probe_tokens(model, shift=1), torch.zeros_like(probe_tokens(model))
    segments[:, max(1, ids.shape[1] * 3 // 8) :] = 1
    for document in (0, 1):
        swapped, other = torch.where(segments == document, changed, ids), segments[0] != document
        before, after = (probed_logits(model, text, segments)[other] for text in (ids, swapped))
        together, apart = (probed_logits(model, text, torch.zeros_like(ids))[other] for text in (ids, swapped))
        moved, could_move = (before - after).abs().max(), (together - apart).abs().max()
        rounding = 1e-6 * before.abs().max()  # experts' matrices have other shapes when the router sends other tokens
        if not moved <= torch.maximum(0.01 * could_move, rounding):
            return "something in it passes from one to the next"
    return ""


def _otherwise(model: PreTrainedModel) -> str:
    """Compare a row that is one document with the same without a mask: windows and positions must stay."""
    ids = probe_tokens(model)
    plain = probed_logits(model, ids, None)
    if not (probed_logits(model, ids, torch.zeros_like(ids)) - plain).abs().max() <= 1e-4 * plain.abs().max():
        return "a document comes out otherwise than without a mask"
    return ""


def probed_logits(model: PreTrainedModel, ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    """[tokens, vocab_size] logits of one row, which is source and target at once if the model has both."""
    both = model.config.is_encoder_decoder
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if both else {})
    if segment_ids is None:
        return model(**inputs, use_cache=False)[0][0]  # type: ignore[no-any-return]
    return document_logits(model, segment_ids, segment_ids if both else None, **inputs)[0]
