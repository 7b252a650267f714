"""transformers' Trainer, with what it needs to see the same batches, and nothing saved."""

from typing import Any

from transformers import Trainer, TrainingArguments

from trainers import BETAS, FOREVER, LEARNING_RATE, MAX_NORM, Rows, load_batches, load_model


def train(task: dict[str, Any], turns: Any) -> None:
    model, batches = load_model(task), load_batches(task)
    turns.watch(model)
    settings = TrainingArguments(
        output_dir=task["folder"],
        per_device_train_batch_size=len(batches[0]["labels"]),
        max_steps=FOREVER,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        logging_steps=task["log_every"],
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    turns.take()
    Trainer(model, settings, train_dataset=Rows(batches)).train()
