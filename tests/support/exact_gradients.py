"""Gradients of one optimizer step in float64, through Lightning's Trainer."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from sslm.config import DataConfig, OptimConfig
from sslm.data.corpus.tokenizer import special_ids
from sslm.data.module import DataModule
from sslm.models.architecture import model_config
from sslm.models.build import build
from sslm.objectives import load_objective
from sslm.training.module import Objective

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "modernbert": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0},
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "dropout": 0.0,
    },
}


class Taken(Callback):
    """The gradients that an optimizer step is about to use."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Objective, optimizer: Any) -> None:
        self.gradients = {
            name: p.grad.clone() for name, p in pl_module.network.named_parameters() if p.grad is not None
        }


def gradients(
    name: str, text: str, cache: str, micro_batch_size: int | None, devices: int = 1
) -> dict[str, torch.Tensor]:
    """Of 8 sequences packed so that their scored tokens differ in number."""
    objective = load_objective(name)
    objective = objective.for_model_type(objective.default_model["model_type"])
    recipe = objective.make_recipe({})
    source = DataConfig(
        train=text,
        document_separator="\n-----\n",
        tokenizer="bpe:512",
        cache_dir=cache,
        packing="best_fit",
        val_sequences=4,
    )
    data = DataModule(source, recipe, seq_len=48, batch_size=8, total_steps=1)
    data.setup()
    kind = objective.default_model["model_type"]
    config = model_config(
        SMALL[kind],
        model_type=None,
        default={"model_type": kind},
        auto_class=objective.auto_class,
        vocab_size=data.vocab_size,
        seq_len=48,
        special_ids=special_ids(data.tokenizer),
    )
    model = build(config, objective.auto_class, 0).double()
    module = objective(
        model, recipe, optim=OptimConfig(clip_norm=None), total_steps=1, micro_batch_size=micro_batch_size
    )
    taken = Taken()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=1,
        callbacks=[taken],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        inference_mode=False,
    )
    trainer.fit(module, datamodule=data)
    return taken.gradients


def main(arguments: list[str]) -> int:
    """Be a rank of DDP as torchrun starts it: OBJECTIVE TEXT CACHE FILE; rank 0 writes name -> gradient to FILE."""
    found = gradients(*arguments[:3], micro_batch_size=2, devices=int(os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] == "0":
        torch.save(found, Path(arguments[3]))
    return 0
