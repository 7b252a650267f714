"""The held-out loss: a mean over tokens, not over batches."""

import torch
from torch import Tensor
from torchmetrics import Metric


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
        """Args:
        row_losses: [batch] summed loss of each row.
        row_scored: [batch] scored tokens of each row.
        sources: [batch] number of each row's source.
        """
        self.loss_sums.index_add_(0, sources, row_losses.double())
        self.scored.index_add_(0, sources, row_scored)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.loss_sums, self.scored
