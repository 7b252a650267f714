"""sslm's rows in Hugging Face's Trainer; typed again after a kill, it goes on.

pip install accelerate
python examples/hf_trainer.py my.txt out --steps 200
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments, default_data_collator, set_seed
from transformers.trainer_utils import get_last_checkpoint

from sslm import CausalLM, DataConfig, DataModule

SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}


def main(text: str, out: Path, steps: int, accumulate: int) -> None:
    set_seed(0)
    config = LlamaConfig(vocab_size=1024, bos_token_id=None, eos_token_id=0, **SHAPE)
    model = AutoModelForCausalLM.from_config(config)
    corpus = DataConfig(train=text, tokenizer="bpe:1024")
    data = DataModule(corpus, CausalLM(config).recipe, seq_len=128, batch_size=16, total_steps=steps)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(out),
            max_steps=steps,
            per_device_train_batch_size=16 // accumulate,
            gradient_accumulation_steps=accumulate,
            train_sampling_strategy="sequential",  # the rows are in their order already
            learning_rate=3e-3,
            eval_strategy="steps",
            eval_steps=0.2,
            save_steps=0.2,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=data.rows("train"),
        eval_dataset=data.rows("val"),
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if out.is_dir() else None)
    trainer.save_model(out / "export")
    data.tokenizer.save_pretrained(out / "export")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--accumulate", type=int, default=1)
    main(**vars(parser.parse_args()))
