"""Lightning's Trainer with its defaults, and a module as its documentation begins with."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from trainers import FOREVER, MAX_NORM, Rows, adamw, load_batches, load_model


class Module(LightningModule):
    """A transformers model in training."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.AdamW:
        return adamw(self.model)


def train(task: dict[str, Any], turns: Any) -> None:
    model, batches = load_model(task), load_batches(task)
    turns.watch(model)
    loader = DataLoader(Rows(batches), batch_size=len(batches[0]["labels"]))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=FOREVER,
        gradient_clip_val=MAX_NORM,
        log_every_n_steps=task["log_every"],
        default_root_dir=task["folder"],
    )
    turns.take()
    trainer.fit(Module(model), loader)
