"""What validation tells of held-out text: the loss, a mean over tokens and not batches, and shares of what is right."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from sslm.models.network import Predicted, is_scored
from sslm.training.scores import Scores
from sslm.training.window_scores import WindowScores


class TokenLoss(Metric):
    """Summed loss in nats and scored tokens over all ranks, per source of a mixture."""

    full_state_update = False

    def __init__(self, num_sources: int) -> None:
        super().__init__()
        self.add_state("loss_sums", torch.zeros(num_sources, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros(num_sources, dtype=torch.int64), dist_reduce_fx="sum")
        self.loss_sums: Tensor
        self.scored: Tensor

    def update(self, row_losses: Tensor, row_scored: Tensor, sources: Tensor) -> None:
        """Add a batch.

        Args:
            row_losses: [batch] summed loss of each row, in nats.
            row_scored: [batch] scored tokens of each row.
            sources: [batch] number of each row's source.
        """
        self.loss_sums.index_add_(0, sources, row_losses.double())
        self.scored.index_add_(0, sources, row_scored)

    def compute(self) -> tuple[Tensor, Tensor]:
        """[sources] summed loss and scored tokens."""
        return self.loss_sums, self.scored


class ValidationMetrics:
    """Gathers one validation's results; all ranks do it together.

    Args:
        sources: names of the held-out text's sources.
        shares: names of what `Objective.correct` tells.
        device: where predictions are made.
        scores: of a task, or None if it has none.
    """

    def __init__(
        self,
        sources: Sequence[str],
        shares: Sequence[str],
        device: torch.device,
        scores: Scores | WindowScores | None = None,
    ) -> None:
        self.sources = sources
        self.scores = None if scores is None else scores.to(device)
        self.loss = TokenLoss(max(len(sources), 1)).to(device)
        self.shares = {name: MeanMetric(nan_strategy="ignore").to(device) for name in shares}  # "disable" drops weights

    def update(
        self,
        predicted: Predicted,
        labels: Tensor,
        sources: Tensor,
        correct: Mapping[str, tuple[Tensor, Tensor]],
        position: int = 0,
    ) -> None:
        """Add a batch.

        Args:
            predicted: losses, and predictions of the labels' shape.
            labels: [batch, …] targets.
            sources: [batch] number of each row's source.
            correct: name of a share -> (what is right, what is looked at).
            position: of the first row among those to validate on.
        """
        self.loss.update(predicted.row_losses, is_scored(labels).flatten(1).sum(1), sources)
        for name, (right, looked_at) in correct.items():
            self.shares[name].update(right.float(), looked_at.float())
        if self.scores is not None:
            self.scores.update(predicted, labels, position)

    def compute(self) -> dict[str, Tensor]:
        """Loss [nats/token], shares, and each source's loss if there are several; without what was not measured."""
        losses, scored = self.loss.compute()
        metrics = {"loss": losses.nansum() / scored.sum()}
        for name, share in self.shares.items():
            if share.update_called and not (value := share.compute()).isnan():
                metrics[name] = value
        if self.scores is not None:
            metrics |= self.scores.compute()
        if len(self.sources) > 1:
            for name, mean, num in zip(self.sources, losses / scored, scored, strict=True):
                if num:
                    metrics[f"loss/{name}"] = mean
        return metrics
