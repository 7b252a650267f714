"""Which token comes next: the likeliest, or one that is drawn. It depends on the prompt, and never on its batch.

A draw is the token whose logit, plus noise of its own, is largest (the Gumbel-max trick: Gumbel 1954; Maddison et al.
2014, "A* Sampling", arXiv:1411.0030, section 2). The noise is a function of (seed, number of the prompt, number of the
new token, token): no generator goes from one row to the next.

Logits themselves differ between batches, in their last digits: matrices of other shapes are summed in another order. If
that could decide between two tokens, the row is computed again, alone: as it would be in any other batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

from sslm.system.errors import RunFailed
from sslm.system.random_words import key64, mix64

CLOSE = 2e-5
"""Largest difference between a row's logits in one batch and in another, as a share of the largest of them (fp32)."""
SPARE = 8
"""Candidates beyond the top k, so that those as likely as the last are among them."""
STEP = np.uint64(0x9E3779B97F4A7C15)


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

    @property
    def is_whole(self) -> bool:
        """Whether any token may be drawn."""
        return self.top_k is self.top_p is self.min_p is None


class Known(LogitsProcessor):
    """Leave tokens that may be written.

    Args:
        vocab_size: tokens that the tokenizer knows.
        never: tokens that are never written.
        model_vocab_size: tokens that the model knows.

    Raises:
        RunFailed: logits are no numbers.
    """

    def __init__(self, vocab_size: int, never: Iterable[int], model_vocab_size: int) -> None:
        forbidden = torch.arange(model_vocab_size) >= vocab_size
        forbidden[list(never)] = True
        self.forbidden = forbidden if bool(forbidden.any()) else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if math.isnan(float(scores.amax(-1).sum())):
            raise RunFailed("the model's outputs are no numbers (NaN): its weights are damaged, or too large")
        if self.forbidden is None:
            return scores
        self.forbidden = self.forbidden.to(scores.device)
        return scores.masked_fill(self.forbidden, -math.inf)


class Choose(LogitsProcessor):
    """Choose each row's next token, and let its score be the only one that is not -inf.

    Args:
        sampling: how.
        known: leaves tokens that may be chosen.
        numbers: [n] each row's prompt.
        padding: [n] tokens of padding before each row.
        alone: (row, its tokens without padding) -> [vocab_size] logits of the next token, computed in a batch of one.
        exact: whether to compute a row again, alone, if its batch could decide.
    """

    def __init__(
        self,
        sampling: Sampling,
        known: Known,
        numbers: list[int],
        padding: Tensor,
        alone: Callable[[int, Tensor], Tensor],
        exact: bool = True,
    ) -> None:
        self.sampling, self.known, self.numbers, self.padding, self.alone = sampling, known, numbers, padding, alone
        self.exact = exact
        self.is_done = [False] * len(numbers)
        """Rows whose text has ended: they are in the batch still, and nobody asks what comes next in them."""
        self.steps = [0] * len(numbers)
        """[n] number of the token that is next."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [row for row, is_done in enumerate(self.is_done) if not is_done]
        tokens = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if len(rows) == len(scores):
            tokens, is_sure = self.chosen(rows, input_ids, scores)
        else:
            tokens[rows], is_sure = self.chosen(rows, input_ids[rows], scores[rows])
        for row, sure in zip(rows, is_sure.tolist(), strict=True):
            if not sure and self.exact:
                ids = input_ids[row : row + 1]
                again = self.alone(row, ids[0, self.padding[row] :])[None].float()
                tokens[row] = self.chosen([row], ids, again)[0][0]
        self.steps = [step + 1 for step in self.steps]
        return torch.full_like(scores, -math.inf).scatter(1, tokens[:, None], 0.0)

    def chosen(self, rows: list[int], ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[n] tokens, and [n] whether their batch could have had no part in it."""
        how = self.sampling
        close = largest_error(logits) * max(how.repetition_penalty, 1 / how.repetition_penalty)
        logits = self.known(ids, logits)
        if how.repetition_penalty != 1:
            logits = RepetitionPenaltyLogitsProcessor(how.repetition_penalty, self.padding[rows])(ids, logits)
        if how.is_greedy:
            best = logits.topk(2)
            return best.indices[:, 0], is_apart(best.values, close)
        close = close / how.temperature
        logits = (logits - logits.amax(-1, keepdim=True)) / how.temperature  # 0 at most: no temperature is too low
        candidates = torch.arange(logits.shape[1], device=logits.device)[None]
        if how.top_k is not None and how.top_k + SPARE < logits.shape[1]:
            logits, candidates = logits.topk(how.top_k + SPARE)
        noise = gumbel(how.seed, [(self.numbers[row], self.steps[row]) for row in rows], candidates).to(logits.device)
        if how.is_whole:
            best = (logits + noise).topk(2)
            return best.indices[:, 0], is_apart(best.values, close)
        drawn, is_sure = drawn_within(logits, noise, how, close)
        return candidates.expand_as(logits).gather(1, drawn)[:, 0], is_sure


def largest_error(logits: Tensor) -> Tensor:
    """[n, 1] what each of [n, vocab_size] logits may differ by in another batch."""
    smallest, largest = logits.aminmax(dim=-1, keepdim=True)
    return torch.maximum(largest, -smallest) * CLOSE


def is_apart(best: Tensor, close: Tensor) -> Tensor:
    """[n] whether the largest of [n, 2 or more] values would be so if each were off by [n, 1]."""
    return best[:, 0] - best[:, 1] > close[:, 0]


def drawn_within(logits: Tensor, noise: Tensor, how: Sampling, close: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from tokens that are likely enough: [n, 1] their places, and [n] whether other rounding would not matter.

    It doesn't if the same token wins among those that may possibly be drawn, and is one of those that surely may.
    """
    loose, exact, tight = cutoffs(logits, how, close)
    drawn = (logits + noise).masked_fill(logits < exact, -math.inf).argmax(-1, keepdim=True)
    possible = logits >= loose - close
    best = (logits + noise).masked_fill(~possible, -math.inf).topk(2)
    likeliest, chosen = logits.topk(2).values, logits.gather(1, drawn)
    surely = (chosen > tight + close)[:, 0] | (is_apart(likeliest, close) & (chosen == likeliest[:, :1])[:, 0])
    others = ~possible.all(-1) | (logits.shape[1] <= (how.top_k or logits.shape[1]))  # beyond the candidates
    return drawn, (best.indices[:, :1] == drawn)[:, 0] & is_apart(best.values, close) & surely & others


def gumbel(seed: int, draws: Sequence[tuple[int, int]], tokens: Tensor) -> Tensor:
    """[n, k] noise of tokens [n or 1, k] in n draws, each named by a prompt's number and a new token's; on the CPU."""
    keys = np.array([key64("gumbel", seed, *draw) for draw in draws], np.uint64)[:, None]
    words = mix64(keys + (tokens.cpu().numpy().astype(np.uint64) + np.uint64(1)) * STEP) >> np.uint64(11)
    uniform = torch.from_numpy(words.astype(np.float32)).mul_(2.0**-53).clamp_(2.0**-60, 1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()  # small numbers, which become large noise, are the fine ones


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
