"""What is missing in a text, by a model that sees both sides of it.

`one_pass` predicts all masks at once, each as if nothing were known of the others. `iterative` predicts them again and
again, each time keeping the token of which the model is surest, until none is left: Mask-Predict (Ghazvininejad et al.
2019, arXiv:1904.09324) with as many passes as masks, and no token predicted twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.generation.draws import Choose, Known, Sampling, largest_error
from sslm.models.generation.writing import Prompt, padded


class Filled(NamedTuple):
    """What a model put in the place of masks."""

    tokens: list[int]
    """In the order of the masks."""
    logprobs: list[float]
    """The logarithm of each one's probability, when it was chosen."""


class Filler:
    """Fills in masks.

    Args:
        model: in evaluation mode, on its device.
        mask: token that holds the place of another.
        never: tokens that are never put in.
        vocab_size: tokens that the tokenizer knows.
        iterative: whether to fill in one mask after the other, the surest first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mask: int,
        never: Sequence[int],
        vocab_size: int,
        sampling: Sampling,
        iterative: bool,
    ) -> None:
        self.model, self.mask, self.sampling, self.iterative = model, mask, sampling, iterative
        self.known = Known(vocab_size, never, model.config.vocab_size)

    @torch.inference_mode()
    def fill(self, prompts: Sequence[Prompt]) -> list[Filled]:
        """Fill in the masks of prompts, which may have different numbers of them, or none."""
        ids, attended = (part.to(self.model.device) for part in padded([prompt.ids for prompt in prompts], False))
        rows = [Row(prompt, ids[n, : len(prompt.ids)], self.mask) for n, prompt in enumerate(prompts)]
        while any(row.left for row in rows):
            logits = self.model(input_ids=ids, attention_mask=attended).logits.float()
            for n, row in enumerate(rows):
                if row.left:
                    self._keep(row, logits[n])
        return [row.filled() for row in rows]

    def _keep(self, row: "Row", logits: Tensor) -> None:
        """Put tokens into a row: for all of its masks that are left, or for the surest alone."""
        tokens, sureness, is_sure = self._chosen(row, logits[row.left])
        if not is_sure and self.model.dtype == torch.float32:
            alone = self.model(input_ids=row.ids[None]).logits[0]
            tokens, sureness, _ = self._chosen(row, alone[row.left])
        kept = [int(sureness.argmax())] if self.iterative else range(len(row.left))
        for n in kept:
            place = row.left[n]
            row.ids[place], row.logprobs[place] = tokens[n], float(sureness[n])
        row.left = [place for place in row.left if place not in row.logprobs]

    def _chosen(self, row: "Row", logits: Tensor) -> tuple[Tensor, Tensor, bool]:
        """[k] tokens for the masks that are left, [k] their log-probabilities, and whether rounding had no part in it.

        A mask's draw is that of a prompt's new token of the same number.
        """
        none = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
        choose = Choose(self.sampling, self.known, [row.number] * len(logits), none.sum(1), lambda *_: logits[0])
        choose.steps = [row.masks.index(place) for place in row.left]
        tokens, is_sure = choose.chosen(list(range(len(logits))), none, logits)
        sureness = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        alike = (
            self.iterative and len(logits) > 1 and -sureness.topk(2).values.diff() <= 2 * largest_error(logits).amax()
        )
        return tokens, sureness, bool(is_sure.all()) and not alike


class Row:
    """A prompt while its masks are filled in."""

    def __init__(self, prompt: Prompt, ids: Tensor, mask: int) -> None:
        self.number, self.ids = prompt.number, ids
        self.masks = [place for place, token in enumerate(prompt.ids) if token == mask]
        self.left = self.masks
        """Places of masks that are not filled in yet."""
        self.logprobs: dict[int, float] = {}
        """Place of one that is -> the logarithm of its token's probability."""

    def filled(self) -> Filled:
        return Filled(self.ids[self.masks].tolist(), [self.logprobs[place] for place in self.masks])
