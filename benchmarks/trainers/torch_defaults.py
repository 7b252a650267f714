"""A loop of a few lines with all that torch does by itself: threads, memory, AdamW of several tensors, whole logits."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F

from trainers import BETAS, LEARNING_RATE, MAX_NORM, load_batches, load_model


def train(task: dict[str, Any], turns: Any) -> None:
    model = load_model(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    turns.take()
    for step, batch in enumerate(itertools.cycle(load_batches(task)), 1):
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % task["log_every"] == 0:
            turns.losses[step] = float(loss)
