"""What a training step costs on the host under sslm, beside a bare loop and the trainers of others.

    python benchmarks/step.py --out benchmarks/results/step.json
    python benchmarks/step.py --only causal_lm-8x8 --rounds 5

README.md beside this file says what is measured and how. All contestants train the same model on the same batches, one
turn after the other; medians are reported, and nothing is timed before all have had the same losses.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from data import choice, environment, versions
from text import documents
from trainers import BETAS, LEARNING_RATE, MAX_NORM
from turns import Contestant, Task

from sslm.cli.parse import parse as parse_training
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.models.build import build
from sslm.objectives.choose import choose_model, choose_objective, open_data

TEXT_CHARS = 1 << 22
SAME_LOSS = 1e-5
"""Largest relative difference between two contestants' losses of one step."""
NUM_BATCHES = 160
"""After so many steps the batches come again; sslm's don't."""
VERSIONS = ("sslm", "lightning", "transformers", "accelerate", "torch")


class Size(NamedTuple):
    """How large the model and its batches are."""

    vocab_size: int
    batch_size: int
    seq_len: int
    layers: int
    width: int
    heads: int
    warm: int
    """Steps before the first turn, whose losses are compared; no more than NUM_BATCHES."""
    length: int
    """Steps of a turn, of which the last is logged."""


SIZES = {
    "8x8": Size(300, 8, 8, layers=1, width=8, heads=2, warm=160, length=20),
    "10M": Size(8192, 8, 256, layers=6, width=256, heads=4, warm=5, length=2),
}


def architecture(objective: str, size: Size) -> dict[str, Any]:
    """The settings of `--model`; without dropout, whose draws nobody could compare."""
    layers, width, heads = size.layers, size.width, size.heads
    common = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    match objective:
        case "causal_lm":
            return {"model_type": "llama", **common, "intermediate_size": 4 * width}
        case "masked_lm":
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            return {"model_type": "bert", **common, "intermediate_size": 4 * width, **no_dropout}
    t5 = {"d_model": width, "d_kv": width // heads, "d_ff": 4 * width, "num_layers": layers, "num_heads": heads}
    return {"model_type": "t5", **t5, "dropout_rate": 0.0}


CONTESTANTS = {
    "bare": "bare loop",
    "bare_again": "bare loop, once more",
    "sslm": "**sslm**",
    "hugging_face": "HF Trainer",
    "lightning_defaults": "Lightning, defaults",
    "litgpt": "litgpt",
}
"""Name -> as a table shows it."""
MODULES = {"bare_again": "bare"}
"""Name -> its module in trainers/, if that has another name."""
PACKAGES = {"hugging_face": "accelerate"}
"""Name -> what it needs beside sslm's own packages."""
UNDER_DDP = ("bare", "bare_again", "sslm")
CAUSAL_ONLY = ("litgpt",)


class Case(NamedTuple):
    """What is trained."""

    objective: str
    size: str
    processes: int = 1


CASES = {
    f"{objective}-{size}": Case(objective, size)
    for size in SIZES
    for objective in ("causal_lm", "masked_lm", "span_corruption")
} | {f"causal_lm-{size}-ddp": Case("causal_lm", size, processes=2) for size in SIZES}


def lay_out(objective: str, size: Size, corpus: Path, folder: Path) -> Task:
    """Make the initial weights and the first batches, as sslm makes them from what is typed; what contestants need."""
    settings = {
        "objective": objective,
        "data.train": corpus,
        "data.val_sequences": size.batch_size,
        "data.tokenizer": corpus.with_name(f"tokenizer-{size.vocab_size}"),
        "seq_len": size.seq_len,
        "batch_size": size.batch_size,
        "optim.lr": LEARNING_RATE,
        "optim.beta1": BETAS[0],
        "optim.beta2": BETAS[1],
        "optim.clip_norm": MAX_NORM,
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.weight_decay": 0.0,
        "accelerator": "cpu",
        "precision": "32",
        **{f"model.{key}": value for key, value in architecture(objective, size).items()},
    }
    config = parse_training([*flags(settings), "--max_steps", str(NUM_BATCHES)])
    kind, recipe = choose_objective(config)
    data = open_data(config, recipe)
    settings["model.vocab_size"] = data.vocab_size  # not rounded up: other trainers would predict what is not there
    model_config = choose_model(parse_training(flags(settings)), kind, data)
    build(model_config, kind.auto_class, config.seed).save_pretrained(folder / "model")
    batches = [
        {name: tensor.contiguous() for name, tensor in batch["tensors"].items()}
        for batch in islice(data.train_dataloader(), NUM_BATCHES)
    ]
    if objective == "causal_lm":  # its labels are the next tokens already
        batches = [{**batch, "shift_labels": batch["labels"]} for batch in batches]
    torch.save(batches, folder / "batches.pt")
    return {
        "objective": objective,
        "arguments": flags(settings),
        "model": str(folder / "model"),
        "batches": str(folder / "batches.pt"),
        "warm": size.warm,
        "length": size.length,
        "log_every": size.length,
    }


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def measured(case: str, contestants: dict[str, str], work: Path, corpus: Path, rounds: int) -> dict[str, Any]:
    """Let the contestants train in turns.

    Args:
        contestants: name -> the Python that runs it.

    Returns:
        What each has told of its turns, name -> clock -> [rounds] seconds a step.
    """
    names = list(contestants)
    objective, size, processes = CASES[case]
    task = lay_out(objective, SIZES[size], corpus, work) | {"processes": processes}
    threads = 1 if size == "8x8" or processes > 1 else len(os.sched_getaffinity(0))
    started: dict[str, Contestant] = {}
    try:
        for name, python in contestants.items():
            started[name] = Contestant(task | {"trainer": MODULES.get(name, name)}, work / name, threads, python)
        for contestant in started.values():
            contestant.answer()
        check_losses({name: losses(work / name) for name in names})
        turns: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in names}
        for number in range(rounds):
            first = number % len(names)  # nobody has always the same one before it
            for name in names[first:] + names[:first]:
                for clock, seconds in started[name].turn().items():
                    turns[name][clock].append(seconds)
        return turns
    finally:
        for contestant in started.values():
            contestant.end()


def losses(folder: Path) -> dict[int, float]:
    """A contestant's losses before its first turn, by step: its own file, or sslm's rows of logged steps."""
    rows = json_lines(folder / "run" / "metrics.jsonl") or json_lines(folder / "losses.jsonl")
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def json_lines(file: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []


def check_losses(found: dict[str, dict[int, float]]) -> None:
    """Refuse to time what does not do the same: all have one loss at each step that all tell of."""
    steps = sorted(set.intersection(*map(set, found.values())))
    if not steps:
        raise SystemExit(f"no step's loss is known of all: {found}")
    for step in steps:
        at_step = {name: known[step] for name, known in found.items()}
        if not math.isclose(min(at_step.values()), max(at_step.values()), rel_tol=SAME_LOSS):
            raise SystemExit(f"step {step}: the losses are not the same: {at_step}")
    say(f"same losses at {len(steps)} steps, {steps[0]} to {steps[-1]}")


def say(what: str) -> None:
    print(f"{time.strftime('%X')}  {what}", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------- printing


def table(case: str, turns: dict[str, dict[str, list[float]]]) -> str:
    """Milliseconds a step; beside each clock, how much more than the bare loop's, and how many times as much."""
    clocks = ("cpu", "wall")
    lines = [
        f"| {case}, ms a step | {' | '.join(f'{clock} | more than bare | times bare' for clock in clocks)} |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, told in turns.items():
        cells = [CONTESTANTS[name]]
        for clock in clocks:
            bare, own = turns["bare"][clock], told[clock]
            more = statistics.median(one - other for one, other in zip(own, bare, strict=True))
            times = statistics.median(one / other for one, other in zip(own, bare, strict=True))
            cells.append(f"{1e3 * statistics.median(own):.2f} ± {1e3 * spread(own):.2f}")
            cells += [f"{1e3 * more:+.2f}", f"{times:.3f}"] if name != "bare" else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> float:
    """Half of the range in which the middle half of the values lies."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def importable(names: list[str]) -> list[str]:
    """Those contestants whose libraries are here."""
    found = [name for name in names if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]
    for name in names:
        if name not in found:
            print(f"{name}: {PACKAGES[name]} is not installed, left out", file=sys.stderr)
    return found


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    say("training tokenizers")
    corpus = write_corpus(work, {SIZES[CASES[case].size].vocab_size for case in options.only}, options.text)
    asked = [name for name in CONTESTANTS if name in options.contestants or name == "bare"]
    if "litgpt" in asked and not options.litgpt:
        asked.remove("litgpt")
        print("litgpt: give --litgpt PYTHON of an environment that has it (README.md), left out", file=sys.stderr)
    contestants = importable(asked)
    cases = {}
    for case in options.only:
        pythons = {
            name: options.litgpt if name == "litgpt" else sys.executable for name in competing(contestants, case)
        }
        cases[case] = measured(case, pythons, work / case, corpus, options.rounds)
        print(table(case, cases[case]), flush=True)  # whatever comes of the next ones
        print()
    here = environment()
    return {
        "command": " ".join(["python benchmarks/step.py", *sys.argv[1:]]),
        **here,
        "versions": versions(VERSIONS),
        "rounds": options.rounds,
        "cases": cases,
    }


def competing(contestants: list[str], case: str) -> list[str]:
    """Those contestants that can train a case."""
    objective, _, processes = CASES[case]
    return [
        name
        for name in contestants
        if (processes == 1 or name in UNDER_DDP) and (objective == "causal_lm" or name not in CAUSAL_ONLY)
    ]


def write_corpus(work: Path, sizes: Iterable[int], text: Path | None) -> Path:
    """Write the text that is trained on, and beside it a tokenizer of each size; the text's file."""
    chars, texts = 0, []
    for document in documents(text):
        texts.append(document)
        if (chars := chars + len(document)) > TEXT_CHARS:
            break
    for size in sizes:
        train_bpe([(text, True) for text in texts], size).save_pretrained(work / f"tokenizer-{size}")
    corpus = work / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return corpus


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/step.py", description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="file or folder of text; default: this Python's library and packages")
    parser.add_argument("--only", type=choice(CASES), default=list(CASES), help=f"of {','.join(CASES)}")
    names = list(CONTESTANTS)
    parser.add_argument("--contestants", type=choice(CONTESTANTS), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--litgpt", metavar="PYTHON", help="of litgpt's environment; without it litgpt is left out")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    if options.litgpt and not os.access(options.litgpt, os.X_OK):
        parser.error(f"--litgpt {options.litgpt}: no such program; give the python of litgpt's environment")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as work:
        results = run(options, Path(work))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
