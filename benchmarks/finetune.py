"""`sslm finetune` beside transformers' Trainer: one pretrained export, one table of labelled texts, the same settings.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py runs/encoder/pretrained/export train.tsv.gz dev.tsv --seeds 1 2 3

Each fine-tuning is a process of its own, which reads, tokenises, trains one epoch and validates at its end; they take
turns. AdamW, cosine schedule, clipping, lengths and rows of a step are the same; the order of rows, the new head's
weights and dropout are each one's own, by the seed. Told are accuracy, mean over seeds, and CPU seconds of a command.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH_SIZE = 64
OPTIM = {"lr": 5e-4, "warmup_steps": 40, "min_lr_ratio": 0.1, "weight_decay": 0.1}
BETAS, MAX_NORM = (0.9, 0.95), 1.0
NEVER = 1_000_000


def sslm(options: argparse.Namespace, seed: int, folder: Path) -> float:
    flags = [f"--optim.{name}={value}" for name, value in OPTIM.items()]
    flags += ["--seq_len", str(options.seq_len), "--batch_size", str(BATCH_SIZE)]
    flags += ["--data.train", options.train, "--data.val", options.val, "--model.pretrained", options.model]
    flags += ["--data.text_field", options.text_field, "--data.label_field", options.label_field]
    flags += ["--max_epochs", "1", "--val_every", str(NEVER), "--data.val_sequences", str(NEVER)]
    flags += ["--seed", str(seed), "--run_dir", str(folder / "run"), "--data.cache_dir", str(folder / "cache")]
    command = [sys.executable, "-m", "sslm", "finetune", "--objective", "classification", "--predictions", "false"]
    subprocess.run([*command, *flags, *options.more], check=True, stdout=sys.stderr)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return float(next(row["val/accuracy"] for row in reversed(rows) if "val/accuracy" in row))


def hugging_face(options: argparse.Namespace, seed: int, folder: Path) -> float:
    """As transformers' documentation fine-tunes: `Trainer`, and a collator that pads to the batch's longest row."""
    import datasets
    import transformers

    transformers.set_seed(seed)
    table = datasets.load_dataset(
        "csv",
        data_files={"train": options.train, "val": options.val},
        sep="\t",
        quoting=3,
        cache_dir=str(folder / "cache"),
    )
    names = sorted(set(table["train"][options.label_field]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # a decoder's has none

    def encoded(rows: Any) -> Any:
        texts = [text.strip() for text in rows[options.text_field]]
        labels = [names.index(label) for label in rows[options.label_field]]
        return {**tokenizer(texts, truncation=True, max_length=options.seq_len), "labels": labels}

    table = table.map(encoded, batched=True, remove_columns=table["train"].column_names)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    model.config.pad_token_id = tokenizer.pad_token_id
    settings = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        learning_rate=OPTIM["lr"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": OPTIM["min_lr_ratio"]},
        warmup_steps=int(OPTIM["warmup_steps"]),
        weight_decay=OPTIM["weight_decay"],
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=MAX_NORM,
        seed=seed,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model,
        settings,
        train_dataset=table["train"],
        eval_dataset=table["val"],
        processing_class=tokenizer,
        compute_metrics=lambda said: {"accuracy": float((said.predictions.argmax(-1) == said.label_ids).mean())},
    )
    trainer.train()
    return float(trainer.evaluate()["eval_accuracy"])


CONTESTANTS = {"sslm": sslm, "HF Trainer": hugging_face}


def measured(name: str, seed: int, arguments: Sequence[str]) -> dict[str, float]:
    """Run one fine-tuning in a process of its own: its accuracy, and the CPU seconds of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, *arguments, "--one", name, "--seeds", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"accuracy": float(done.stdout.splitlines()[-1]), "cpu_seconds": seconds}


def in_words(name: str, runs: Sequence[dict[str, float]]) -> str:
    accuracy, seconds = ([run[what] for run in runs] for what in ("accuracy", "cpu_seconds"))
    deviation = statistics.stdev(accuracy) if len(runs) > 1 else 0.0
    took = f"{statistics.median(seconds):6.1f} s of CPU time"
    return f"{name:12} accuracy {statistics.mean(accuracy):.4f} ± {deviation:.4f}   {took}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pretrained export")
    parser.add_argument("train", help="tab-separated table to train on")
    parser.add_argument("val", help="table to validate on")
    parser.add_argument("--text_field", default="sentence")
    parser.add_argument("--label_field", default="label")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="file for the figures (.json)")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options, options.more = parser.parse_known_args(arguments)
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(CONTESTANTS[options.one](options, options.seeds[0], Path(folder)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for seed in options.seeds:
        for name in CONTESTANTS:
            runs[name].append(measured(name, seed, arguments))
            print(f"seed {seed}: {in_words(name, runs[name][-1:])}", flush=True)
    for name in CONTESTANTS:
        print(in_words(name, runs[name]))
    if options.out:
        options.out.write_text(json.dumps({"optim": OPTIM, "seeds": options.seeds, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
