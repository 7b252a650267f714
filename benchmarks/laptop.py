"""The newcomer's run, `python -m sslm.train` without arguments, beside a bare loop with torch's defaults, on a CPU.

    python benchmarks/laptop.py --rounds 20 --out benchmarks/results/laptop.json

README.md beside this file says what is measured and how. Both train the same model on the same batches in fp32, one
turn after the other, each with the threads that it takes by itself; only steps are timed, after both have had the same
losses.
"""

import argparse
import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from data import environment, versions
from step import VERSIONS, check_losses, flags, losses, say, table
from trainers import BETAS, FOREVER, LEARNING_RATE, MAX_NORM
from turns import Contestant, Task

from sslm.cli.parse import parse as parse_training
from sslm.models.build import build
from sslm.objectives.choose import choose_model, choose_objective, open_data

CONTESTANTS = {"bare": "torch_defaults", "bare_again": "torch_defaults", "sslm": "sslm"}
"""Name, as step.py's table has it -> module in trainers/."""
WARM, LENGTH = 20, 10
"""Steps before the first turn, whose losses are compared; steps of a turn, of which the last is logged."""
NUM_BATCHES = 100
SETTINGS = {
    "optim.lr": LEARNING_RATE,
    "optim.beta1": BETAS[0],
    "optim.beta2": BETAS[1],
    "optim.clip_norm": MAX_NORM,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0,
    "accelerator": "cpu",
    "precision": "32",
}
"""What the bare loop can take as simply: the rest is the default run's."""


def lay_out(folder: Path) -> Task:
    """Make the default run's initial weights and first batches, and return what contestants need."""
    config = parse_training(flags(SETTINGS))
    kind, recipe = choose_objective(config)
    data = open_data(config, recipe)
    build(choose_model(config, kind, data), kind.auto_class, config.seed).save_pretrained(folder / "model")
    batches = islice(data.train_dataloader(), NUM_BATCHES)
    torch.save(
        [{name: t.contiguous() for name, t in batch["tensors"].items()} for batch in batches], folder / "batches"
    )
    return {
        "objective": config.objective.name,
        "arguments": flags(SETTINGS),
        "model": str(folder / "model"),
        "batches": str(folder / "batches"),
        "warm": WARM,
        "length": LENGTH,
        "log_every": config.log_every,
        "processes": 1,
    }


def measured(work: Path, rounds: int, threads: int | None) -> dict[str, dict[str, list[float]]]:
    """Let them train in turns: name -> clock -> [rounds] seconds a step."""
    assert WARM + rounds * LENGTH < FOREVER
    task, started = lay_out(work), {}
    try:
        for name, module in CONTESTANTS.items():
            started[name] = Contestant(task | {"trainer": module}, work / name, threads)
        for contestant in started.values():
            contestant.answer()
        check_losses({name: losses(work / name) for name in started})
        turns: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in started}
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name in list(started)[:: 1 if number % 2 else -1]:
                for clock, seconds in started[name].turn().items():
                    turns[name][clock].append(seconds)
        return turns
    finally:
        for contestant in started.values():
            contestant.end()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/laptop.py", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of both, as OMP_NUM_THREADS; default: what each takes by itself")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        turns = measured(Path(folder), options.rounds, options.threads)
    print(table("default run", turns))
    if options.out:
        found: dict[str, Any] = {
            "command": " ".join(["python benchmarks/laptop.py", *sys.argv[1:]]),
            **environment(),
            "versions": versions(VERSIONS),
            "rounds": options.rounds,
            "threads": options.threads,
            "turns": turns,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
