"""Model and loss as one module: what is sharded, DDP-wrapped and compiled is this, never the body alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslm.models.masks import document_logits


class LanguageModel(nn.Module):
    """A transformers model that returns each row's summed loss, so that means are taken once, over all devices' tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        labels: Tensor | None = None,
        *,
        segment_ids: Tensor | None = None,
        decoder_segment_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Summed cross-entropy of each row in nats, fp32 [batch]; without `labels` the logits, [batch, seq_len, vocab_size].

        Args:
            labels: [batch, seq_len] the token that each position's output is to predict; -100 is not scored.
            segment_ids: [batch, seq_len] which of its row's documents each token of `input_ids` belongs to (see `masks`), which
                keeps them apart; None: a row is one text.
            decoder_segment_ids: the same of `decoder_input_ids`, where the model has an encoder and a decoder.
            inputs: the model's own inputs (`input_ids` [batch, seq_len], …).
        """
        if segment_ids is None:
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        else:
            logits = document_logits(self.model, segment_ids, decoder_segment_ids, **inputs)
        if labels is None:
            return logits
        return (
            F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).sum(dim=1)
        )


@torch.no_grad()
def sample(
    network: LanguageModel, prompts: Tensor, seq_len: int, num_new: int, seed: int, temperature: float = 0.8
) -> Tensor:
    """[n, k] prompts -> [n, k + num_new] tokens of a causal model, drawn one by one; at most seq_len in all.

    Goes through the wrapped module's forward, hence works sharded, and always with [n, seq_len] tokens, hence recompiles
    nothing; all ranks draw the same.
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
