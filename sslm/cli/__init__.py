"""What can be typed: one file or folder for each verb, with a `main(arguments) -> exit code`."""

import sslm

VERBS = {
    "train": "pretrain a model (no arguments: a two-minute run on embedded English)",
    "finetune": "teach a pretrained model a task, by labelled data",
    "predict": "say with a fine-tuned model what the labels of rows are",
    "prepare": "tokenise text into a corpus that `--data.train` takes",
    "plan": "tell beforehand what a run takes: memory, time, money, disk, on this machine or another",
    "verify-resume": "kill a run at random steps, resume it, and compare it with one that was not",
    "generate": "let a trained model write: go on with prompts, or fill in what is missing in them",
    "export": "make a plain Hugging Face folder of a run's checkpoint",
    "evaluate": "measure trained models: perplexity, bits per byte, pseudo-perplexity, exact spans",
    "plot": "draw runs beside each other: any metric over steps, tokens, hours or FLOPs",
    "ui": "show runs on a local page, also while they go on",
    "track": "give a run's rows to trackers: W&B, trackio, MLflow, TensorBoard, CSV",
    "doctor": "look whether this machine can train, and say what would hurt a run",
    "ckpt": "list, verify, compare, reshard or remove checkpoints",
}


def usage() -> str:
    """Return what `sslm --help` prints."""
    title = f"sslm {sslm.__version__}: self-supervised pretraining of language models"
    verbs = "\n".join(f"  {verb:<15}{what}" for verb, what in VERBS.items())
    return f"{title}\n\nusage: sslm VERB [flags]\n\n{verbs}\n\n`sslm VERB --help` explains a verb's flags."
