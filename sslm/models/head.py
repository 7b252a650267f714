"""Model and loss as one module, which is sharded, DDP-wrapped and compiled as a whole, never the body alone.

What turns hidden states into logits differs from family to family (BERT's transform, T5's scale, soft caps, BART's
bias), but always treats each place for itself. So none of it is written again here: if few places are scored, their
hidden states alone are let through to the model's own head (`first_of_head` finds where it begins).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.models.blocks import evaluating
from sslm.models.linear_head import LinearHead, ends_in_linear
from sslm.models.masks import document_logits, unread_masks
from sslm.models.network import IGNORED, Network, Predicted, is_scored, is_token
from sslm.models.outputs import Outputs
from sslm.models.probe import probe_tokens

UNPADDED = "unpadded_vocab_size"
"""Key of a config whose vocabulary was rounded up: entries of the tokenizer. The rest is never predicted."""


class LanguageModel(Network):
    """A transformers model that returns each row's summed loss, so that means are taken once, over all devices' tokens.

    Args:
        model: any language model of transformers.
        max_scored: largest number of scored places in a row, on which alone the head works; or None if on all.
        label_smoothing: share of each target's probability that is spread over the vocabulary, while training.
        z_loss: weight of log² of the softmax's denominator in the loss, while training.
        embedding_noise: NEFTune's α: noise on the input, uniform within ± α / √(tokens · width), while training.
        probe: a model of the same make that can be run, to find where the head begins if `model` has no weights yet.
        chunks_loss: whether the loss is computed some places at a time, so that no logits of all places are held, if
            the head ends in a linear layer that `linear_head.suits`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_scored: int | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        embedding_noise: float = 0.0,
        probe: PreTrainedModel | None = None,
        chunks_loss: bool = False,
    ) -> None:
        super().__init__(model, embedding_noise)
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.max_scored = max_scored
        self.vocab_size: int = getattr(model.config, UNPADDED, None) or model.config.vocab_size
        self._places: Tensor | None = None
        head = first_of_head(probe or model) if max_scored is not None else None
        self._gathers_in_head = head is not None
        if head is not None:
            model.get_submodule(head).register_forward_pre_hook(self._let_scored_through)
        self.linear_head = (
            LinearHead(model) if chunks_loss and ends_in_linear(model) else None
        )  # what it sees is scored

    def forward(
        self,
        labels: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        decoder_segment_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
        predict: bool = False,
        outputs: bool = False,
        **inputs: Tensor,
    ) -> Any:
        """Sum each row's cross-entropy.

        Args:
            labels: [batch, target_len] the token that each place's output is to predict, -100 if none. The decoder's
                inputs are made of them if the model has an encoder and no `decoder_input_ids` are given.
            segment_ids: [batch, seq_len] the document of each token of `input_ids` (see `masks`), to keep them apart;
                None if a row is one text.
            decoder_segment_ids: [batch, target_len] the same of the decoder's tokens, if the model has an encoder too.
            document_offsets: [documents + 1] where they begin in the joined rows, if attention takes that (`varlen`).
            predict: whether to return `Predicted`.
            outputs: whether to return `Outputs`.
            inputs: the model's own inputs (`input_ids` [batch, seq_len], …).

        Returns:
            [batch] nats in fp32, `Predicted` or `Outputs`; without `labels` the logits, [batch, seq_len, vocab_size].
        """
        if labels is not None and self.model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = decoder_inputs(labels, self.model.config, decoder_segment_ids)
        places = None if labels is None or self.max_scored is None else scored_places(labels, self.max_scored)
        self.begin_pass(inputs, segment_ids, document_offsets, watches=outputs)
        segments = segment_ids, decoder_segment_ids
        if labels is None:
            return self._logits(places, *segments, **inputs)[..., : self.vocab_size]
        targets = labels if places is None else labels.gather(1, places)
        if outputs:
            said, scored = self._outputs(targets, places, *segments, **inputs), is_scored(labels)
            encoded = [is_token(inputs, segment_ids)] if self.model.config.is_encoder_decoder else []
            return self.with_layers(said, *encoded, scored)
        losses, tokens = self._scored(targets, places, *segments, predict=predict, **inputs)
        if not predict:
            return losses
        if places is not None:
            tokens = torch.full_like(labels, IGNORED).scatter(1, places, tokens)
        return Predicted(losses, tokens)

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._losses(logits[None], targets[None])[0]

    def _outputs(self, targets: Tensor, places: Tensor | None, *segments: Tensor | None, **inputs: Tensor) -> Outputs:
        head = self.linear_head
        if head is None or (places is not None and not self._gathers_in_head):
            return Outputs(self._logits(places, *segments, **inputs), targets, self.vocab_size)
        with head.kept_from():
            self._logits(places, *segments, **inputs)
        return head.outputs(targets, self.vocab_size)

    def _scored(
        self, targets: Tensor, places: Tensor | None, *segments: Tensor | None, predict: bool, **inputs: Tensor
    ) -> tuple[Tensor, Any]:
        """[batch] nats, and, to predict, [batch, num] the likeliest token at each scored place."""
        head = self.linear_head
        if head is not None and head.serves(targets) and (places is None or self._gathers_in_head):
            with head.kept_from():
                self._logits(places, *segments, **inputs)
            smoothing, z_loss = (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
            return head.losses(targets, self.vocab_size, smoothing, z_loss)
        logits = self._logits(places, *segments, **inputs)[..., : self.vocab_size]
        losses = self._losses(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
        tokens = torch.where(targets == IGNORED, IGNORED, logits.argmax(-1)) if predict else None
        return losses.sum(dim=1), tokens

    def _logits(
        self, places: Tensor | None, segment_ids: Tensor | None, decoder_segment_ids: Tensor | None, **inputs: Tensor
    ) -> Tensor:
        """[batch, places, model's vocab_size]."""
        self._places = places if self._gathers_in_head else None
        try:
            with unread_masks(self.model):
                if segment_ids is None:
                    logits: Tensor = self.model(**inputs, use_cache=False).logits
                else:
                    logits = document_logits(self.model, segment_ids, decoder_segment_ids, **inputs)
        finally:
            self._places = None
        return logits if places is None or self._gathers_in_head else gathered(logits, places)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[batch, num] loss of each target, 0 if it is not scored."""
        smoothing = self.label_smoothing if self.training else 0.0
        flat = logits.flatten(0, 1), targets.flatten()
        losses = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing).view_as(targets)
        if self.training and self.z_loss:
            losses = losses + self.z_loss * logits.logsumexp(-1).square() * (targets != IGNORED)
        return losses

    def _let_scored_through(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._places is None:
            return arguments
        return (gathered(arguments[0], self._places), *arguments[1:])


def scored_places(labels: Tensor, num: int) -> Tensor:
    """[batch, num] scored places of each row in order, followed by others if there are fewer.

    >>> scored_places(torch.tensor([[-100, 7, -100, 5]]), 2).tolist()
    [[1, 3]]
    """
    return (labels == IGNORED).to(torch.uint8).sort(dim=1, stable=True).indices[:, :num]


def gathered(values: Tensor, places: Tensor) -> Tensor:
    """[batch, length, width], [batch, num] -> [batch, num, width]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _decoder(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "decoder", config)  # T5Gemma has one config for each half


def decoder_start(config: PreTrainedConfig) -> int:
    """Return the token that the decoder of a model with an encoder begins with: its family's."""
    decoder = _decoder(config)
    pads = config.pad_token_id, getattr(decoder, "pad_token_id", None), 0
    starts = getattr(config, "decoder_start_token_id", None), getattr(decoder, "bos_token_id", None), *pads
    return next(n for n in starts if n is not None)


def decoder_inputs(labels: Tensor, config: PreTrainedConfig, segment_ids: Tensor | None = None) -> Tensor:
    """[batch, target_len] labels one place later; each row and each document begins with the family's start token."""
    pads = config.pad_token_id, getattr(_decoder(config), "pad_token_id", None), 0
    pad = next(n for n in pads if n is not None)
    start = decoder_start(config)
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    if segment_ids is not None:
        begins = segment_ids != torch.cat([segment_ids[:, :1], segment_ids[:, :-1]], dim=1)
        shifted = shifted.masked_fill(begins, start)
    return shifted.masked_fill(shifted == IGNORED, pad)


@torch.no_grad()
def first_of_head(model: PreTrainedModel) -> str | None:
    """Name the module in which the head begins, by watching the model run.

    Of the model's direct parts it is the first after the body, which is the last to return more than a tensor. Whether
    the rest treats each place for itself is tried. If there is no such part, logits have to be made for all places.
    """
    if model.config.is_encoder_decoder:
        return None  # all places of its targets are scored
    called: list[tuple[nn.Module, bool]] = []
    watching = [
        part.register_forward_hook(lambda part, _, output: called.append((part, isinstance(output, Tensor))))
        for part in model.children()
    ]
    ids = probe_tokens(model)
    try:
        with evaluating(model):
            before: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in watching:
            handle.remove()
    body = max((n for n, (_, is_tensor) in enumerate(called) if not is_tensor), default=-1)
    if body < 0 or body + 1 == len(called):
        return None
    head, places = called[body + 1][0], torch.tensor([[2, 5, 6]], device=model.device)
    handle = head.register_forward_pre_hook(lambda _, arguments: (gathered(arguments[0], places), *arguments[1:]))
    try:
        with evaluating(model):
            some = model(input_ids=ids, use_cache=False).logits
        alike = torch.allclose(some, gathered(before, places), rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    except (RuntimeError, IndexError, ValueError):
        alike = False
    finally:
        handle.remove()
    return next(name for name, part in model.named_children() if part is head) if alike else None


@torch.no_grad()
def sample(
    network: Network, prompts: Tensor, seq_len: int, num_new: int, seed: int, temperature: float = 0.8
) -> Tensor:
    """Continue [n, k] prompts with a causal model in evaluation mode: [n, k + num_new], or [n, seq_len] if less.

    All ranks draw the same. It calls the wrapped module's forward, hence works sharded, and always with [n, seq_len]
    tokens, hence recompiles nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    n, k = prompts.shape
    tokens = prompts.new_zeros(n, seq_len)
    tokens[:, :k] = prompts
    end = min(k + num_new, seq_len)
    for position in range(k, end):
        logits = network(input_ids=tokens)[:, position - 1].float().cpu().nan_to_num() / temperature
        tokens[:, position] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].to(tokens.device)
    return tokens[:, :end]
