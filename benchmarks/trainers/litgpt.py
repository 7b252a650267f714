"""What `litgpt pretrain` runs, with weights by litgpt's own conversion, in an environment of its own."""

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.loggers import CSVLogger
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from trainers import BETAS, FOREVER, LEARNING_RATE, MAX_NORM, Rows, load_batches


class Sequences(DataModule):
    """The same rows, as litgpt takes them: a row's tokens and the one after them."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.rows = Rows([{"labels": torch.cat([b["input_ids"], b["labels"][:, -1:]], dim=1)} for b in batches])
        self.batch_size = len(batches[0]["labels"])

    def connect(self, *_: Any, **__: Any) -> None:
        """Take nothing: rows are cut already."""

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            self.rows, self.batch_size, collate_fn=lambda rows: torch.stack([row["labels"] for row in rows])
        )

    val_dataloader = train_dataloader


def train(task: dict[str, Any], turns: Any) -> None:
    model, folder, data = Path(task["model"]), Path(task["folder"]), Sequences(load_batches(task))
    theirs = json.loads((model / "config.json").read_text())
    config = config_of(theirs)
    weights: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(model / "model.safetensors"))
    torch.save(weights, folder / "lit_model.pth")
    watch_losses(turns)
    turns.take()
    pretrain.main(
        fabric=lightning.Fabric(devices=1, accelerator="cpu", precision="32-true", loggers=[CSVLogger(folder, "logs")]),
        devices=1,
        seed=0,
        initial_checkpoint_dir=folder,
        resume=False,
        config=config,
        data=data,
        out_dir=folder / "out",
        tokenizer_dir=None,
        tokenizer=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=task["log_every"],
            global_batch_size=data.batch_size,
            micro_batch_size=data.batch_size,
            lr_warmup_steps=None,
            max_tokens=FOREVER * data.batch_size * config.block_size,
            max_norm=MAX_NORM,
            tie_embeddings=theirs["tie_word_embeddings"],
            min_lr=LEARNING_RATE,  # constant: its cosine ends where it begins
        ),
        eval=EvalArgs(interval=FOREVER, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": LEARNING_RATE, "betas": BETAS, "weight_decay": 0.0},
        },
    )


def config_of(theirs: dict[str, Any]) -> Config:
    """The settings of a Llama of transformers, in litgpt's words."""
    return Config(
        name="Llama",
        block_size=theirs["max_position_embeddings"],
        n_layer=theirs["num_hidden_layers"],
        n_embd=theirs["hidden_size"],
        n_head=theirs["num_attention_heads"],
        n_query_groups=theirs["num_key_value_heads"],
        intermediate_size=theirs["intermediate_size"],
        vocab_size=theirs["vocab_size"],
        padded_vocab_size=theirs["vocab_size"],
        norm_eps=theirs["rms_norm_eps"],
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )


def watch_losses(turns: Any) -> None:
    """Keep the losses that it trains on, until the first turn."""
    cross_entropy = pretrain.chunked_cross_entropy

    def watched(logits: Tensor, targets: Tensor, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = cross_entropy(logits, targets, *arguments, **named)
        if turns.began is not None:
            pretrain.chunked_cross_entropy = cross_entropy
        elif loss.requires_grad and loss.device.type != "meta":
            turns.losses[len(turns.losses) + 1] = float(loss)
        return loss

    pretrain.chunked_cross_entropy = watched
