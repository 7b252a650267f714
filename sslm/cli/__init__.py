"""What can be typed: one file or folder for each verb, with a `main(arguments) -> exit code`."""

import sslm

VERBS = {
    "train": "pretrain a model (no arguments: two minutes, embedded English)",
    "finetune": "teach a pretrained model a task, by labelled data",
    "predict": "say with a fine-tuned model what the labels of rows are",
    "prepare": "tokenise text into a corpus that `--data.train` takes",
    "clean": "turn raw text into documents worth learning from, and report",
    "tokenizer": "train a tokenizer, compare tokenizers, give one new tokens",
    "distill-cache": "write down what a teacher says of a run, to train without it",
    "inspect": "show what a model will read: documents, windows, masked batches",
    "plan": "tell beforehand what a run takes: memory, time, money, disk",
    "verify-resume": "kill and resume a run, and compare it with one that was not",
    "generate": "let a trained model write: go on with prompts, or fill in gaps",
    "export": "make a plain Hugging Face folder of a run's checkpoint",
    "evaluate": "measure models: perplexity, bits per byte, spans, tasks",
    "compress": "make a model smaller, and tell what that costs",
    "plot": "draw runs beside each other: any metric, over any axis",
    "ui": "show runs on a local page, also while they go on",
    "track": "give a run's rows to W&B, trackio, MLflow, TensorBoard, CSV",
    "doctor": "look whether this machine can train, and what would hurt a run",
    "ckpt": "list, verify, compare, reshard or remove checkpoints",
    "completion": "print what completes all of this at Tab: bash, zsh, fish",
}


def usage() -> str:
    """Return what `sslm --help` prints."""
    title = f"sslm {sslm.__version__}: self-supervised pretraining of language models"
    verbs = "\n".join(f"  {verb:<15}{what}" for verb, what in VERBS.items())
    return f"{title}\nusage: sslm VERB [flags]; `sslm VERB --help` explains a verb's flags\n\n{verbs}"
