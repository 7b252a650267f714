"""sslm's module and batches in a Lightning Trainer of one's own, with Lightning's callbacks; --resume goes on.

python examples/lightning_trainer.py my.txt out --steps 200
python examples/lightning_trainer.py my.txt out --steps 200 --resume out/last.ckpt
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import LlamaConfig

from sslm import CausalLM, DataConfig, DataModule
from sslm.config import OptimConfig

SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}


def main(text: str, out: Path, steps: int, devices: int, resume: str | None) -> None:
    config = LlamaConfig(vocab_size=1024, bos_token_id=None, eos_token_id=0, **SHAPE)
    model = CausalLM(config, optim=OptimConfig(warmup_steps=steps // 10), micro_batch_size=8)
    data = DataModule(DataConfig(train=text, tokenizer="bpe:1024"), model.recipe, seq_len=128, batch_size=16)
    every = max(steps // 5, 1)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        val_check_interval=every,
        log_every_n_steps=1,
        logger=CSVLogger(out),
        callbacks=[
            # names of metrics have slashes: without auto_insert_metric_name=False they would become folders
            ModelCheckpoint(
                out,
                monitor="val/loss",
                filename="step={step}-loss={val/loss:.3f}",
                auto_insert_metric_name=False,
                save_last=True,
            ),
            EarlyStopping("val/loss", patience=3),
            LearningRateMonitor("step"),
        ],
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    best = trainer.checkpoint_callback.best_model_path
    [tested] = trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)
    print(f"{best}: {tested}")
    if trainer.is_global_zero:
        best_model = CausalLM.load_from_checkpoint(best).network.model  # transformers' own
        best_model.save_pretrained(out / "export")
        data.tokenizer.save_pretrained(out / "export")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--resume")
    main(**vars(parser.parse_args()))
