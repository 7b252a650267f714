"""What is trained: a transformers model and its loss as one module, which gives each row's loss."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslm.models.experts import cast_experts_under_autocast
from sslm.models.layer_states import LayerStates
from sslm.models.outputs import Layers, Outputs
from sslm.models.varlen import takes_offsets, tell_documents

IGNORED = nn.CrossEntropyLoss().ignore_index
"""Label of a place that is not scored: torch's -100."""


def is_scored(labels: Tensor) -> Tensor:
    """Whether each label is a target; of numbers those that are not NaN."""
    return ~labels.isnan() if labels.is_floating_point() else labels >= 0


def is_token(inputs: Mapping[str, Tensor], segment_ids: Tensor | None = None) -> Tensor:
    """[batch, seq_len] whether a place of the input is more than padding."""
    if segment_ids is not None:
        return segment_ids >= 0
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) > 0


class Predicted(NamedTuple):
    """Losses and predictions of a validation step."""

    row_losses: Tensor
    """[batch] summed loss of each row."""
    tokens: Tensor
    """Like the labels: what the model takes for the likeliest, IGNORED where nothing is scored."""
    spans: Tensor | None = None
    """[batch, 4] of models that look for answers: `likeliest_spans`."""


class Network(nn.Module):
    """A transformers model whose input's embeddings can be perturbed, by noise or on purpose.

    Args:
        model: any model of transformers.
        embedding_noise: NEFTune's α: noise on the input, uniform within ± α / √(tokens · width), while training.
    """

    def __init__(self, model: PreTrainedModel, embedding_noise: float = 0.0) -> None:
        super().__init__()
        cast_experts_under_autocast()
        self.model, self.embedding_noise = model, embedding_noise
        self.perturbation: Tensor | None = None
        """[batch, seq_len, width] added to the input's embeddings (the encoder's if there are two inputs)."""
        self.pipeline: Any = None
        """What takes a step's passes if ranks have some of the blocks each (`parallel/pipeline.py`); else None."""
        self.layer_states: LayerStates | None = None
        """What watches layers, for a teacher to be compared with; None if nothing does."""
        self._is_first_lookup = False
        reader = model.get_encoder() if model.config.is_encoder_decoder else model
        embedding: Any = reader.get_input_embeddings()
        embedding.register_forward_hook(self._perturbed)
        self._embedding = [embedding]  # in a list: it is the model's

    def forward(
        self, labels: Tensor | None = None, *, predict: bool = False, outputs: bool = False, **inputs: Tensor
    ) -> Any:
        """Sum each row's loss.

        Args:
            labels: [batch, …] targets; None to get the model's logits.
            predict: whether to return `Predicted`.
            outputs: whether to return `Outputs`, of which others make a loss.
            inputs: the model's own inputs (`input_ids` [batch, seq_len], …).

        Returns:
            [batch] nats in fp32, or `Predicted`, or `Outputs`, or logits.
        """
        raise NotImplementedError

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[places, classes] logits in fp32, [places] targets -> [places] loss of each, 0 if it is not scored.

        Args:
            logits: as `Outputs` have them.
            targets: likewise.
        """
        raise NotImplementedError

    def begin_pass(
        self,
        inputs: Mapping[str, Tensor],
        segment_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
        *,
        watches: bool = False,
    ) -> None:
        """Perturb the next look-up of embeddings, which is the input's, and tell attention where documents begin.

        Args:
            watches: whether what layers say is kept, for `with_layers`.
        """
        self._is_first_lookup = True
        if watches and self.layer_states is not None:
            self.layer_states.begin()
        if takes_offsets(self.model):
            segments = segment_ids if segment_ids is not None else inputs.get("attention_mask")
            tell_documents(inputs["input_ids"], segments, document_offsets)

    def with_layers(self, outputs: Outputs, *places: Tensor) -> Outputs:
        """Add what the pass' watched layers said, if any are.

        Args:
            places: as in `Layers`.
        """
        if self.layer_states is None:
            return outputs
        return outputs._replace(layers=Layers(self.layer_states.end(), [*places]))

    def no_perturbation(self, ids: Tensor) -> Tensor:
        """[batch, seq_len, width] zeros, in fp32 at least, to become `perturbation`."""
        weight = self._embedding[0].weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(*ids.shape, weight.shape[-1], dtype=dtype, device=ids.device)

    def _perturbed(self, embedding: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if not (self.training and self._is_first_lookup):
            return embedded
        self._is_first_lookup = False
        if self.embedding_noise:
            limit = self.embedding_noise / (embedded.shape[-2] * embedded.shape[-1]) ** 0.5
            embedded = embedded + torch.empty_like(embedded).uniform_(-limit, limit)
        return embedded if self.perturbation is None else embedded + self.perturbation.to(embedded.dtype)
