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
from transformers import PreTrainedConfig, PreTrainedModel, masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks

SCORES = "sslm_scores"
"""SDPA that shows its scores to a teacher or a student (`layer_states`), as `set_attn_implementation` takes it."""

EXPLICIT = ("sdpa", "eager", SCORES)
"""Attention that takes an explicit mask; transformers chooses eager where an architecture's attention is not SDPA's."""

FLEX = "flex_attention"
"""Attention that takes the blocks of a mask in which there is something (Dong et al. 2024, arXiv:2412.05496)."""

POSITIONS_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text"),
    *("ibert", "mpnet", "esm", "luke", "longformer"),
}
"""Architectures whose positions begin after the padding's id."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def document_logits(
    model: PreTrainedModel, segment_ids: Tensor, decoder_segment_ids: Tensor | None = None, **inputs: Tensor
) -> Tensor:
    """Logits [batch, target_len, vocab_size] of rows in which no document sees another.

    Args:
        model: any that `check_documents` passes. One that `takes_offsets` has been told of its documents.
        segment_ids: [batch, seq_len] of `input_ids`.
        decoder_segment_ids: [batch, target_len] of `decoder_input_ids`, numbered alike: a document reads its own
            source. Every document with a target has a source.
        inputs: the model's own, without an attention mask.
    """
    if "segment_ids" in parameters(model):  # a model of ours, which has states to reset and no attention
        output = model(segment_ids=segment_ids, **inputs)
    elif model.config.is_encoder_decoder:
        assert decoder_segment_ids is not None
        output = _encode_and_decode(model, segment_ids, decoder_segment_ids, **inputs)
    else:
        with attention_within(segment_ids):
            output = model(**inputs, **_positions(model, "position_ids", segment_ids), use_cache=False)
    logits: Tensor = output[0]  # of a model that looks for answers, one of two
    return logits


def _encode_and_decode(
    model: PreTrainedModel, segment_ids: Tensor, decoder_segment_ids: Tensor, input_ids: Tensor, **inputs: Tensor
) -> Any:
    """Run the encoder, then the decoder: one call of both takes one mask for the encoder and for reading it."""
    encoder = model.get_encoder()
    with attention_within(segment_ids):
        encoded = encoder(input_ids=input_ids, **_positions(encoder, "position_ids", segment_ids))
    reads = cross_mask(model, decoder_segment_ids, segment_ids)
    with attention_within(decoder_segment_ids):
        return model(
            encoder_outputs=encoded,
            attention_mask=reads,
            use_cache=False,
            **inputs,
            **_positions(model, "decoder_position_ids", decoder_segment_ids),
        )


@contextmanager
def attention_within(segment_ids: Tensor) -> Iterator[None]:
    """Keep every mask that transformers makes meanwhile to documents, and to what they call padding."""

    def within(make_mask: Callable[..., Tensor], *, mask_function: MaskFunction, **how: Any) -> Tensor:
        how |= {"attention_mask": None, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return make_mask(mask_function=and_masks(mask_function, same_document), **how)

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segment_ids[batch, query] == segment_ids[batch, key]

    with _masks_made_by(within), _packed_as(segment_ids):
        yield


@contextmanager
def unread_masks(model: PreTrainedModel) -> Iterator[None]:
    """Let a model run without a look at what masks and positions contain, for which the host would wait.

    Rows packed with documents are told by `segment_ids`, so none are searched for; a mask of padding is applied even
    if nothing is padding; and what a decoder reads of itself has no padding: its targets alone are scored.
    """
    has_decoder = model.config.is_encoder_decoder

    def unread(make_mask: Callable[..., Tensor], *, attention_mask: Tensor | None = None, **how: Any) -> Tensor:
        if has_decoder and how.get("allow_is_causal_skip"):  # ones that the decoder has made
            attention_mask = None
        if attention_mask is not None:
            how |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return make_mask(attention_mask=attention_mask, **how)

    with _masks_made_by(unread), _packed_as(None):
        yield


@contextmanager
def _packed_as(segment_ids: Tensor | None) -> Iterator[None]:
    """Tell transformers which rows are packed, and how: chunks of attention begin anew with each document.

    See docs/lessons.md, "The search for packed rows looks at contents".
    """
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: segment_ids
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


@contextmanager
def _masks_made_by(make: Callable[..., Tensor]) -> Iterator[None]:
    """Let `make` make all masks meanwhile; its first argument is what makes them otherwise."""
    before = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in (*EXPLICIT, FLEX)}
    for name, make_mask in before.items():
        ALL_MASK_ATTENTION_FUNCTIONS[name] = partial(make, make_mask)
    try:
        yield
    finally:
        for name, make_mask in before.items():
            ALL_MASK_ATTENTION_FUNCTIONS[name] = make_mask


def cross_mask(model: PreTrainedModel, decoder_segment_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """[batch, 1, target_len, seq_len] mask that lets a target read its own document's source.

    Padding, whose source may be empty, reads everything.
    """

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        reader = decoder_segment_ids[batch, query]
        return (reader == segment_ids[batch, key]) | (reader < 0)

    mask: Tensor = ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation](
        batch_size=len(segment_ids),
        q_length=decoder_segment_ids.shape[1],
        kv_length=segment_ids.shape[1],
        mask_function=same_document,
        allow_is_causal_skip=False,
        dtype=model.dtype,
        device=segment_ids.device,
    )
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
    if name not in parameters(model):
        return {}
    config = model.config
    return {name: positions_within(segment_ids) + first_position(config.model_type, config.pad_token_id)}


def first_position(model_type: str, padding_id: int | None) -> int:
    """Position of a text's first token: RoBERTa's kin count on from the padding's id, as fairseq did."""
    if model_type not in POSITIONS_AFTER_PADDING or padding_id is None:
        return 0
    return 2 if model_type == "mpnet" else padding_id + 1  # MPNet's is always 1


def num_positions(config: PreTrainedConfig) -> int | None:
    """Length of the longest text that a model takes; None if its config sets no limit, as T5's and an LSTM's."""
    positions = getattr(config, "max_position_embeddings", None)
    first = first_position(config.model_type, getattr(config, "pad_token_id", None))
    return positions - first if isinstance(positions, int) and positions > 0 else None


def parameters(model: PreTrainedModel) -> set[str]:
    """Names of what a model's forward pass takes."""
    return set(inspect.signature(model.forward).parameters)


ALL_MASK_ATTENTION_FUNCTIONS.register(SCORES, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
