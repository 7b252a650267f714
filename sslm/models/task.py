"""Models that are taught a task: transformers' classes for classes, tags, numbers and answers, with each row's loss.

What a model is taught stands in its own config, by transformers' names: `problem_type`, `num_labels`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.head import LanguageModel
from sslm.models.masks import unread_masks
from sslm.models.network import IGNORED, Network, Predicted, is_scored, is_token
from sslm.models.outputs import Outputs

LONGEST_ANSWER = 30
"""Tokens of the longest answer that is looked for, as in BERT's own run_squad."""
UNLIKELY = -1e4
"""Logit of a place that can't be an edge, where −∞ would make differences of two models' undefined."""
CLASSES, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"
"""Values of a config's `problem_type`: one class each, several labels at once, a number."""


class TaskModel(Network):
    """A model with a task's head, which gives each row's summed loss.

    Args:
        model: of one of transformers' classes for sequence or token classification.
        label_smoothing: share of each target's probability that is spread over the classes, while training.
        embedding_noise: as in `Network`.
        class_weights: [classes] weight of each class in the loss while training, None if all count 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        label_smoothing: float = 0.0,
        embedding_noise: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(model, embedding_noise)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def forward(
        self,
        labels: Tensor | None = None,
        *,
        predict: bool = False,
        outputs: bool = False,
        document_offsets: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        self.begin_pass(inputs, None, document_offsets, watches=outputs)
        with unread_masks(self.model):
            logits: Tensor = self.model(**inputs).logits
        if labels is None:
            return logits
        if outputs:
            is_tagging = logits.dim() == 3
            places = is_scored(labels) if is_tagging else is_token(inputs)
            return self.with_layers(self._outputs(logits, labels), places)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = self._losses(logits, labels).flatten(1).sum(dim=1)
        return Predicted(losses, self._predictions(logits, labels)) if predict else losses

    def _outputs(self, logits: Tensor, labels: Tensor) -> Outputs:
        """Distributions: over classes, over no and yes of each label, or one number."""
        if self.model.config.problem_type == SEVERAL:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        states = logits.view(*labels.shape, -1)
        return Outputs(states, labels, states.shape[-1])

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        kind = self.model.config.problem_type
        if kind == NUMBER:
            logits = logits[:, 0]
        return self._losses(logits[:, 1] - logits[:, 0] if kind == SEVERAL else logits, targets)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[batch, …] loss of each label, 0 if it is not scored."""
        kind = self.model.config.problem_type
        weights = self.class_weights.to(logits) if self.training and self.class_weights is not None else None
        if kind == NUMBER:
            return torch.where(labels.isnan(), 0.0, logits - labels.nan_to_num()).square()
        if kind == SEVERAL:
            wanted = labels.clamp(min=0).to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none")
            return losses * (labels != IGNORED)
        smoothing = self.label_smoothing if self.training else 0.0
        flat = logits.flatten(0, -2), labels.flatten()
        losses = F.cross_entropy(*flat, weights, reduction="none", label_smoothing=smoothing)
        return losses.view_as(labels)

    def _predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Like the labels: the likeliest class, whether each label is likelier than not, or the number."""
        kind = self.model.config.problem_type
        if kind == NUMBER:
            return logits
        likeliest = (logits > 0).long() if kind == SEVERAL else logits.argmax(-1).view_as(labels)
        return torch.where(labels == IGNORED, IGNORED, likeliest)


class SpanModel(Network):
    """A model that says where an answer begins and where it ends, which gives each row's two losses summed.

    Args:
        model: of one of transformers' classes for question answering.
        embedding_noise: as in `Network`.
    """

    def forward(
        self,
        labels: Tensor | None = None,
        *,
        predict: bool = False,
        outputs: bool = False,
        context: Tensor | None = None,
        document_offsets: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        """Sum each row's loss, as every network; `context` [batch, seq_len] is 1 where an answer may stand."""
        self.begin_pass(inputs, None, document_offsets, watches=outputs)
        with unread_masks(self.model):
            said = self.model(**inputs)
        edges = torch.stack([said.start_logits, said.end_logits], dim=1)
        edges = edges.to(torch.promote_types(edges.dtype, torch.float32))
        if (mask := inputs.get("attention_mask")) is not None:  # or a row's loss would depend on the batch's width
            edges = edges.masked_fill(mask[:, None] == 0, -torch.inf)
        if labels is None:
            return edges
        if outputs:
            made = Outputs(edges.clamp(min=UNLIKELY), labels, edges.shape[-1])
            return self.with_layers(made, is_token(inputs))
        losses = self.token_losses(edges.flatten(0, 1), labels.flatten()).view_as(labels).sum(dim=1)
        if not predict:
            return losses
        spans = likeliest_spans(edges, torch.ones_like(edges[:, 0]) if context is None else context)
        has_answer = (spans[:, 2] > spans[:, 3])[:, None]
        found = torch.where(has_answer, spans[:, :2], 0.0).to(labels.dtype)
        return Predicted(losses, torch.where(labels == IGNORED, IGNORED, found), spans)

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")


def likeliest_spans(edges: Tensor, context: Tensor, longest: int = LONGEST_ANSWER) -> Tensor:
    """[batch, 4] of each window: first and last place of its likeliest answer, that one's score, and that of none.

    An answer's score is the sum of its two logits; having none is an answer at the first token, [CLS] (Devlin et al.
    2018, section 4.3).

    Args:
        edges: [batch, 2, seq_len] logits of beginnings and of ends, fp32 at least.
        context: [batch, seq_len] 1 where an answer may stand; where it can't at all, the score is −∞.
        longest: tokens that an answer may have.
    """
    starts, ends = edges.masked_fill(context[:, None] == 0, -torch.inf).unbind(1)
    length = starts.shape[1]
    both = starts[:, :, None] + ends[:, None, :]
    allowed = torch.ones(length, length, dtype=torch.bool, device=edges.device).triu().tril(longest - 1)
    score, best = both.masked_fill(~allowed, -torch.inf).flatten(1).max(dim=1)
    none = edges[:, :, 0].sum(dim=1)
    return torch.stack([best // length, best % length, score, none], dim=1).to(score.dtype)


def window_with_answer(spans: Tensor) -> int | None:
    """Choose the window of a question that has its answer; None if having none is likelier in one of them.

    Args:
        spans: [windows, 4], as `likeliest_spans` finds them.

    >>> window_with_answer(torch.tensor([[3, 4, 1.5, 1.0], [7, 7, 2.5, 2.0]]))
    1
    >>> window_with_answer(torch.tensor([[3, 4, 1.5, 4.0], [7, 7, 2.5, 3.0]])) is None
    True
    """
    score, window = spans[:, 2].max(dim=0)
    return int(window) if score > spans[:, 3].min() else None


def network_for(
    model: PreTrainedModel,
    max_scored: int | None = None,
    *,
    probe: PreTrainedModel | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    embedding_noise: float = 0.0,
    class_weights: Tensor | None = None,
    chunks_loss: bool = False,
) -> Network:
    """Make what is trained of a model: a `TaskModel` or `SpanModel` if it has a task's head, else a `LanguageModel`."""
    if type(model).__name__.endswith("ForQuestionAnswering"):
        return SpanModel(model, embedding_noise)
    if type(model).__name__.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return TaskModel(
            model, label_smoothing=label_smoothing, embedding_noise=embedding_noise, class_weights=class_weights
        )
    return LanguageModel(
        model,
        max_scored,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        embedding_noise=embedding_noise,
        probe=probe,
        chunks_loss=chunks_loss,
    )
