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

from sslm.models.generation.draws import Choose, Known, Sampling
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
        forbidden = torch.arange(model.config.vocab_size) >= vocab_size
        forbidden[list(never)] = True
        self.known = Known(forbidden.to(model.device))

    @torch.inference_mode()
    def fill(self, prompts: Sequence[Prompt]) -> list[Filled]:
        """Fill in the masks of prompts, which may have different numbers of them, or none."""
        ids, attended = (part.to(self.model.device) for part in padded([prompt.ids for prompt in prompts], False))
        masks = [[n for n, token in enumerate(prompt.ids) if token == self.mask] for prompt in prompts]
        logprobs: list[dict[int, float]] = [{} for _ in prompts]
        left = [list(places) for places in masks]
        while any(left):
            logits = self.model(input_ids=ids, attention_mask=attended).logits.float()
            for row, places in enumerate(left):
                if places:
                    self._keep(prompts[row].number, ids[row], logits[row], masks[row], places, logprobs[row])
        rows = zip(ids.tolist(), masks, logprobs, strict=True)
        return [Filled([row[n] for n in places], [sure[n] for n in places]) for row, places, sure in rows]

    def _keep(
        self, number: int, ids: Tensor, logits: Tensor, masks: list[int], left: list[int], logprobs: dict[int, float]
    ) -> None:
        """Put tokens into a row's ids: for all of the places left, or for the surest alone."""
        known = self.known(ids, logits[left])
        sure = logits[left].log_softmax(-1)
        tokens = [self._token(number, masks.index(n), known[k : k + 1]) for k, n in enumerate(left)]
        chosen = [float(sure[k, token]) for k, token in enumerate(tokens)]
        for n, token, logprob in sorted(zip(left, tokens, chosen, strict=True), key=lambda one: -one[2]):
            ids[n], logprobs[n] = token, logprob
            left.remove(n)
            if self.iterative:
                break

    def _token(self, number: int, place: int, logits: Tensor) -> int:
        """Choose a token for one of a prompt's masks; its draw is that of a prompt's new token of the same number."""
        none = torch.zeros(1, 0, dtype=torch.long, device=logits.device)
        choose = Choose(self.sampling, [number], torch.zeros(1, dtype=torch.long), lambda *_: logits[0], exact=False)
        choose.step = place
        return int(choose(none, logits).argmax())
