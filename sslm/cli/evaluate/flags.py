"""What can be typed after `sslm evaluate`."""

import argparse

from sslm.system.paths import followed, local_path

DESCRIPTION = (
    "Measure trained models: perplexity and bits per byte, pseudo-perplexity, or the objective's loss and exact spans."
)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the flags; argparse's sentence and exit code 2 if one is wrong."""
    return flag_parser().parse_args(arguments)


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm evaluate", description=DESCRIPTION)
    model = "run folder, checkpoint, Hugging Face folder, or name on the hub"
    data = (
        "text or a corpus, as --data.train takes them: file, glob, folder, dataset, corpus here or at a URL, "
        "'embedded'; may be given several times; NAME=PATH gives it a name"
    )
    tasks = (
        "tasks of lm-evaluation-harness: files (.yaml) with data here, folders of them, or names that it knows, "
        "separated by commas"
    )
    against = (
        "training text, corpus or run: tell how many documents or examples have a run of 13 tokens that stands in it"
    )
    seq_len = "tokens of a window, at most; default: what a run was trained with, or the model takes, up to 4096"
    stride = "tokens that each window of a long document adds; default: half of seq_len"
    size = "sequences per forward pass; default: what suits the device; no figure depends on it"
    devices = "number of devices of this machine that share the work; no figure depends on it (default: 1)"
    separator = "regular expression between the documents of a .txt; default: a file is one document"
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", type=followed, help=model)
    add("--data", action="append", metavar="[NAME=]PATH", help=data)
    add("--tasks", action="append", metavar="TASKS", help=tasks)
    add("--num_fewshot", type=_number, help="examples before each question of a task; default: what it says")
    add("--against", type=followed, metavar="CORPUS_OR_RUN", help=against)
    add("--out", type=local_path, metavar="FILE.json", help="file for all figures")
    add("--limit", type=_positive, help="take the first so many documents, or examples; default: all")
    add(
        "--text_field",
        "--data.text_field",
        default="text",
        help="field of .jsonl, .parquet and datasets (default: text)",
    )
    add("--document_separator", "--data.document_separator", help=separator)
    add("--seq_len", type=_positive, help=seq_len)
    add("--stride", type=_positive, help=stride)
    add("--batch_size", type=_positive, help=size)
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="kind of device (default: auto)")
    add("--devices", type=_positive, default=1, help=devices)
    add(
        "--cache_dir",
        "--data.cache_dir",
        type=local_path,
        help="folder for downloads; default: the user's cache folder",
    )
    add("--last", action="store_true", help="take the last weights even if a run averages them")
    return parser


def _number(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
