"""The training loops that are compared, one module each, with the same name in all.

    train(task, turns)   train the model in `task["model"]` on the batches in `task["batches"]` until the process is
                         ended; `turns.take()` before the first step

All clip the gradient to a norm of 1, take AdamW's fused steps at one learning rate, and look at the loss every
`task["log_every"]` steps.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.95)
MAX_NORM = 1.0
FOREVER = 1_000_000
"""Steps of a run that nobody waits for."""

AUTO_CLASSES = {"causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}


def load_model(task: dict[str, Any]) -> "PreTrainedModel":
    """The model with its initial weights, in training."""
    import transformers  # not every trainer's environment has it

    auto_class = getattr(transformers, AUTO_CLASSES.get(task["objective"], "AutoModelForSeq2SeqLM"))
    model: PreTrainedModel = auto_class.from_pretrained(task["model"])
    return model.train()


def load_batches(task: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The first batches, as transformers' models take them."""
    batches: list[dict[str, Tensor]] = torch.load(task["batches"])
    return batches


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The batches' rows, one after the other and again from the beginning: what a DataLoader takes."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.rows = [{name: batch[name][n] for name in batch} for batch in batches for n in range(len(batch["labels"]))]

    def __len__(self) -> int:
        return FOREVER

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.rows[number % len(self.rows)]
