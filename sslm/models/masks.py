"""Attention inside documents: no token of a packed row sees another document's.

transformers makes every attention mask (causal, sliding window, chunks, both ways, one per type of layer) through one
table, an entry per attention implementation. While a model runs on documents, entries of ours stand there: the mask is
the architecture's own, AND both tokens are of one document. Windows and types of layers need nothing of us this way,
and what a model reads past the table (a state, a convolution, a mask of its own) is found by `check_documents`.

A row is told by its `segment_ids`, [batch, seq_len]: which of the row's documents a token belongs to, 0, 1, 2 …, each
in one piece; -1 is padding, which sees padding only: no softmax is ever over nothing. Positions restart with each
document where an architecture takes `position_ids`; where it doesn't (BART's kin) they run on.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks

from sslm.errors import UserError

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention that takes an explicit mask; transformers chooses eager where an architecture's attention is not SDPA's."""

AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "ibert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Their positions count from pad_token_id + 1, as fairseq's did."""

PROBE_TOKENS, PROBE_CUT = 8, 3

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def document_logits(
    model: PreTrainedModel, segment_ids: Tensor, decoder_segment_ids: Tensor | None = None, **inputs: Tensor
) -> Tensor:
    """The model's logits with every document for itself.

    Args:
        segment_ids: [batch, seq_len] of `input_ids`.
        decoder_segment_ids: [batch, target_len] of `decoder_input_ids`, numbered alike: a document reads its own source. Every
            document with a target has a source.
        inputs: the model's own, without an attention mask.
    """
    if "segment_ids" in _parameters(model):  # a model of ours, which has states to reset and no attention
        output = model(segment_ids=segment_ids, **inputs)
    elif model.config.is_encoder_decoder:
        assert decoder_segment_ids is not None
        output = _encode_and_decode(model, segment_ids, decoder_segment_ids, **inputs)
    else:
        with attention_within(segment_ids):
            output = model(**inputs, **_positions(model, "position_ids", segment_ids), use_cache=False)
    logits: Tensor = output.logits
    return logits


def _encode_and_decode(
    model: PreTrainedModel, segment_ids: Tensor, decoder_segment_ids: Tensor, input_ids: Tensor, **inputs: Tensor
) -> Any:
    """One after the other: a call of both at once takes one mask for the encoder and for reading it."""
    encoder = model.get_encoder()
    with attention_within(segment_ids):
        encoded = encoder(input_ids=input_ids, **_positions(encoder, "position_ids", segment_ids))
    with attention_within(decoder_segment_ids):
        return model(
            encoder_outputs=encoded, attention_mask=cross_mask(model, decoder_segment_ids, segment_ids), use_cache=False,
            **inputs, **_positions(model, "decoder_position_ids", decoder_segment_ids),
        )  # fmt: skip


@contextmanager
def attention_within(segment_ids: Tensor) -> Iterator[None]:
    """Every mask that transformers makes meanwhile keeps to documents, and takes what is padding from them."""

    def within(make_mask: Callable[..., Tensor], *, mask_function: MaskFunction, **how: Any) -> Tensor:
        how |= {"attention_mask": None, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return make_mask(mask_function=and_masks(mask_function, same_document), **how)

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segment_ids[batch, query] == segment_ids[batch, key]

    for name in IMPLEMENTATIONS:
        ALL_MASK_ATTENTION_FUNCTIONS[name] = partial(within, ALL_MASK_ATTENTION_FUNCTIONS[name])
    try:
        yield
    finally:
        for name in IMPLEMENTATIONS:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]


def cross_mask(model: PreTrainedModel, decoder_segment_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """[batch, 1, target_len, seq_len]: a target reads its own document's source; padding, whose source may be empty, all."""

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        reader = decoder_segment_ids[batch, query]
        return (reader == segment_ids[batch, key]) | (reader < 0)

    mask: Tensor = ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation](
        batch_size=len(segment_ids), q_length=decoder_segment_ids.shape[1], kv_length=segment_ids.shape[1],
        mask_function=same_document, allow_is_causal_skip=False, dtype=model.dtype, device=segment_ids.device,
    )  # fmt: skip
    return mask


def positions_within(segment_ids: Tensor) -> Tensor:
    """Each token's place in its document.

    >>> positions_within(torch.tensor([[0, 0, 0, 1, 1, -1]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    place = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    begins = segment_ids != segment_ids.roll(1, dims=1)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def _positions(model: PreTrainedModel, name: str, segment_ids: Tensor) -> dict[str, Tensor]:
    if name not in _parameters(model):
        return {}
    first = model.config.pad_token_id + 1 if model.config.model_type in AFTER_PADDING else 0
    return {name: positions_within(segment_ids) + first}


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


# ------------------------------------------------------------------------------------------------ is it so?


@torch.no_grad()
def check_documents(model: PreTrainedModel) -> None:
    """See on a few tokens that documents don't see each other, and that one alone is what it is without a mask.

    Raises:
        UserError: it isn't so; no table of names could tell, so that every architecture is tried.
    """
    kind, was_training = model.config.model_type, model.training
    refused = f"--data.document_mask true: {kind} can't keep documents apart"
    instead = "leave the flag out, or take an architecture such as llama, bert or t5"
    if "segment_ids" not in _parameters(model) and model.config._attn_implementation not in IMPLEMENTATIONS:
        raise UserError(f"{refused} with {model.config._attn_implementation} attention; {instead}")
    model.eval()
    try:
        if _moves(*_leaks(model)):
            raise UserError(f"{refused}, something in it passes from one to the next; {instead}")
        if _moves(*_whole_and_plain(model)):
            raise UserError(f"{refused}, a single document comes out otherwise than without a mask; {instead}")
    except UserError:
        raise
    except Exception as error:  # each architecture has its own way not to take a mask
        raise UserError(f"{refused} ({type(error).__name__}: {' '.join(str(error).split())[:160]}); {instead}") from None
    finally:
        model.train(was_training)


def _moves(before: Tensor, after: Tensor) -> bool:
    """Further than rounding, and than what mixtures of experts' matrices of other shapes make of it."""
    return not bool((before - after).abs().max() <= 1e-4 * before.abs().max())


def _probe(model: PreTrainedModel, ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    if segment_ids is None:
        return model(**inputs, use_cache=False).logits[0]
    return document_logits(model, segment_ids, segment_ids if model.config.is_encoder_decoder else None, **inputs)[0]


def _tokens(model: PreTrainedModel, shift: int = 0) -> Tensor:
    """[1, PROBE_TOKENS] tokens, none of them padding."""
    padding = getattr(model.config, "pad_token_id", None)
    ids = (torch.arange(PROBE_TOKENS, device=model.device) + 5 + shift) % model.config.vocab_size
    return torch.where(ids == padding, (ids + PROBE_TOKENS) % model.config.vocab_size, ids)[None]


def _leaks(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Two documents' outputs, and the same where each time the other one is changed."""
    ids, others = _tokens(model), _tokens(model, shift=1)
    segments = (torch.arange(PROBE_TOKENS, device=model.device) >= PROBE_CUT).long()[None]
    after = _probe(model, torch.where(segments == 0, ids, others), segments)[:PROBE_CUT]
    later = _probe(model, torch.where(segments == 1, ids, others), segments)[PROBE_CUT:]
    return _probe(model, ids, segments), torch.cat([after, later])


def _whole_and_plain(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """One document's outputs, and the same without a mask."""
    ids = _tokens(model)
    return _probe(model, ids, torch.zeros_like(ids)), _probe(model, ids, None)
