"""Which token comes next: the likeliest, or one that is drawn. It depends on the prompt, and never on its batch.

A draw is the token whose logit, plus noise of its own, is largest (the Gumbel-max trick: Gumbel 1954; Maddison et al.
2014, "A* Sampling", arXiv:1411.0030, section 2). The noise is a function of (seed, number of the prompt, number of the
new token), by a counter-based generator (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").

Logits themselves differ between batches, in their last digits: matrices of other shapes are summed in another order. If
that could decide between two tokens, the row is computed again, alone: as it would be in any other batch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

from sslm.system.errors import RunFailed

CLOSE = 2e-5
"""Largest difference between a row's logits in one batch and in another, as a share of the largest of them (fp32)."""


class Sampling(NamedTuple):
    """How tokens are chosen."""

    temperature: float = 0.0
    """What logits are divided by; 0: the likeliest token is taken."""
    top_k: int | None = None
    """Draw from this many likeliest tokens."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens with this much probability together (Holtzman et al. 2020, nucleus)."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the likeliest one's probability (Nguyen et al. 2025)."""
    repetition_penalty: float = 1.0
    """What makes tokens less likely that are there already (Keskar et al. 2019, CTRL); 1: nothing."""
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


class Known(LogitsProcessor):
    """Leave tokens that the tokenizer knows.

    Raises:
        RunFailed: logits are no numbers.
    """

    def __init__(self, forbidden: Tensor) -> None:
        self.forbidden = forbidden

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if math.isnan(float(scores.amax(-1).sum())):
            raise RunFailed("the model's outputs are no numbers (NaN): its weights are damaged, or too large")
        return scores.masked_fill(self.forbidden, -math.inf)


class Choose(LogitsProcessor):
    """Choose each row's next token, and let its score be the only one that is not -inf.

    Args:
        sampling: how.
        numbers: [n] each row's prompt.
        padding: [n] tokens of padding before each row.
        alone: (row, its tokens without padding) -> [vocab_size] logits of the next token, computed in a batch of one.
        exact: whether to compute a row again, alone, if its batch could decide.
    """

    def __init__(
        self,
        sampling: Sampling,
        numbers: list[int],
        padding: Tensor,
        alone: Callable[[int, Tensor], Tensor],
        exact: bool = True,
    ) -> None:
        self.sampling, self.numbers, self.padding, self.alone = sampling, numbers, padding, alone
        self.close = CLOSE if exact else 0.0
        self.is_done = [False] * len(numbers)
        """Rows whose text has ended: they are in the batch still, and nobody asks what comes next in them."""
        self.step = 0
        """Number of the token that is next."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [row for row, is_done in enumerate(self.is_done) if not is_done]
        tokens = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if len(rows) == len(scores):
            tokens, is_sure = self._chosen(rows, input_ids, scores)
        else:
            tokens[rows], is_sure = self._chosen(rows, input_ids[rows], scores[rows])
        for row, sure in zip(rows, is_sure.tolist(), strict=True):
            if not sure and self.close:
                ids = input_ids[row : row + 1]
                forbidden = scores[row : row + 1] == -math.inf
                again = self.alone(row, ids[0, self.padding[row] :])[None].float().masked_fill(forbidden, -math.inf)
                tokens[row] = self._chosen([row], ids, again)[0][0]
        self.step += 1
        return torch.full_like(scores, -math.inf).scatter(1, tokens[:, None], 0.0)

    def _chosen(self, rows: list[int], ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[n] tokens, and [n] whether their batch could have had no part in it."""
        how = self.sampling
        if how.repetition_penalty != 1:
            logits = RepetitionPenaltyLogitsProcessor(how.repetition_penalty, self.padding[rows])(ids, logits)
        close = logits.masked_fill(logits == -math.inf, 0).abs().amax(-1, keepdim=True) * self.close
        if how.is_greedy:
            best = logits.topk(2)
            return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] > close[:, 0]
        close = close / how.temperature
        logits = (logits - logits.amax(-1, keepdim=True)) / how.temperature  # 0 at most: no temperature is too low
        noise = gumbel(how.seed, [self.numbers[row] for row in rows], self.step, logits.shape[1]).to(logits.device)
        if how.top_k is how.top_p is how.min_p is None:
            best = (logits + noise).topk(2)
            return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] > close[:, 0]
        loose, exact, tight = cutoffs(logits, how, close)
        drawn = (logits + noise).masked_fill(logits < exact, -math.inf).argmax(-1)
        best = (logits + noise).masked_fill(logits < loose - close, -math.inf).topk(2)
        likeliest, chosen = logits.topk(2).values, logits.gather(1, drawn[:, None])
        always = (chosen == likeliest[:, :1]) & (likeliest[:, :1] - likeliest[:, 1:] > close)  # above any cutoff
        is_apart = best.values[:, :1] - best.values[:, 1:] > close
        is_sure = (best.indices[:, :1] == drawn[:, None]) & is_apart & (always | (chosen > tight + close))
        return drawn, is_sure[:, 0]


def gumbel(seed: int, numbers: list[int], step: int, vocab_size: int) -> Tensor:
    """[n, vocab_size] noise of each prompt's new token number `step`, drawn on the CPU."""
    noise = np.empty((len(numbers), vocab_size), np.float32)
    for row, number in zip(noise, numbers, strict=True):
        draws = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, step, 0, 0]))
        draws.standard_exponential(dtype=np.float32, out=row)
    return torch.from_numpy(noise).clamp_(min=1e-30).log_().neg_()  # minus the log of an exponential is a Gumbel


def cutoffs(logits: Tensor, how: Sampling, close: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, 1] logit of the least likely token that may be drawn, thrice: at most, as it is, and at least.

    Args:
        logits: [n, vocab_size], of which each row's largest is 0.
        how: the tokens that may be drawn.
        close: [n, 1] what logits may be off, and with them the probability of any set of tokens.
    """
    lowest = torch.full_like(close, -math.inf)
    if how.min_p:
        lowest = lowest.clamp(min=math.log(how.min_p))
    if how.top_k is None and how.top_p is None:
        return lowest, lowest, lowest
    ordered = logits.topk(min(how.top_k or logits.shape[1], logits.shape[1])).values
    lowest = lowest.maximum(ordered[:, -1:])
    if how.top_p is None:
        return lowest, lowest, lowest
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=1)
    before[:, 0] = 0.0
    least = (how.top_p + close, how.top_p, how.top_p - close)
    last = [(before < share).sum(-1, keepdim=True).clamp(min=1) - 1 for share in least]
    loose, exact, tight = (ordered.gather(1, place).maximum(lowest) for place in last)
    return loose, exact, tight
