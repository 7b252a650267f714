"""sslm finetune --seeds 1,2,3: one run for each seed, one after the other, and what they score together.

Each is an ordinary run, in RUN_DIR/seed-1 and so on, which resumes if the same command is given again; those that are
done stay. At the end seeds.json has each validation score of the models that the runs exported: each seed's, their mean
and their sample standard deviation.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from sslm.cli.parse import parse, split_flags
from sslm.config import CheckpointConfig, Config, parse_stop_after
from sslm.runs.folder import RunFolder
from sslm.system import ranks
from sslm.system.errors import UserError, short
from sslm.system.exits import DONE, INTERRUPTED
from sslm.system.files import write_atomically
from sslm.system.signals import give_back, take_signals
from sslm.system.terminal import print_table, say

Scores = dict[str, dict[str, float | None]]
"""Name of a score -> seed, "mean" or "deviation" -> value; None if it is not finite."""


def names_seeds(arguments: list[str]) -> bool:
    """Whether a command line names several seeds."""
    return any(word == "--seeds" or word.startswith("--seeds=") for word in arguments)


def main(arguments: list[str]) -> int:
    """Run all seeds; the exit code is that of the first run that does not end well, or 0."""
    seeds, rest = taken(arguments)
    config = parse(rest)
    check(config, rest)
    folder = config.run_folder
    for number, seed in enumerate(seeds, start=1):
        say(f"Seed {seed}, {number} of {len(seeds)}: {folder_of(config, seed)}")
        if code := trained(command_for(seed, rest, config)):
            return code
    if not config.dry_run:
        found = scores({seed: RunFolder(folder_of(config, seed)).rows() for seed in seeds}, config.checkpoint)
        write_atomically(folder / "seeds.json", json.dumps({"seeds": seeds, "scores": found}, indent=1) + "\n")
        show(found, seeds)
        say(f"The same as JSON: {folder / 'seeds.json'}", to_copy=True)
    return DONE


def folder_of(config: Config, seed: int) -> Path:
    """Run folder of a seed."""
    return config.run_folder / f"seed-{seed}"


def taken(arguments: list[str]) -> tuple[list[int], list[str]]:
    """Take --seeds out of a command line.

    >>> taken(["--seeds", "1,2", "--seq_len", "8"])
    ([1, 2], ['--seq_len', '8'])

    Raises:
        UserError: they are not at least two different whole numbers, or --seed is there, too.
    """
    flags = list(split_flags(arguments))
    (*_, given) = (flag.value or "" for flag in flags if flag.name == "seeds")
    words = given.split(",")
    if not all(word.strip().isdecimal() and len(word) < 19 for word in words) or len(set(map(int, words))) < 2:
        raise UserError(f"--seeds {short(given)}: expected at least two whole numbers, as in --seeds 1,2,3")
    if any(flag.name == "seed" for flag in flags):
        raise UserError("--seed and --seeds: both are given; give one of them")
    rest = [word for flag in flags if flag.name != "seeds" for word in flag.words]
    return list(dict.fromkeys(map(int, words))), rest


def check(config: Config, arguments: list[str]) -> None:
    """Raise UserError where one process can't start the runs, or where their folder is another run's."""
    if ranks.under_torchrun() or ranks.under_srun() or config.num_nodes > 1:
        instead = "start each by itself, with --seed 1 --run_dir RUNS/seed-1 and so on"
        raise UserError(f"--seeds: one process starts the runs in turn, not torchrun, srun or several nodes; {instead}")
    if RunFolder(config.run_folder).config.is_file():
        raise UserError(f"--run_dir {config.run_folder}: is a run itself; give another for the runs of --seeds")


def command_for(seed: int, arguments: list[str], config: Config) -> list[str]:
    """Command line of one run. A limit of time holds for all runs together."""
    more = ["--seed", str(seed), "--run_dir", str(folder_of(config, seed))]
    if config.checkpoint.upload is not None:
        more += ["--checkpoint.upload", f"{config.checkpoint.upload.rstrip('/')}/seed-{seed}"]
    if config.stop_after is not None and (seconds := parse_stop_after(config.stop_after)[0]) is not None:
        left = max(math.floor(seconds - (time.monotonic() - ranks.STARTED_AT)), 1)
        more += ["--stop_after", f"{left}s"]
    return [sys.executable, "-m", "sslm.train", *arguments, *more]


def trained(command: list[str]) -> int:
    """Run a command to its end, however this process is asked to stop, and return its exit code."""
    child = subprocess.Popen(command, preexec_fn=ranks.die_with_parent)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT or not os.isatty(0):  # a terminal's interrupt reaches both
            child.send_signal(number)

    before = take_signals(pass_on)
    try:
        code = child.wait()
    finally:
        give_back(before)
    return INTERRUPTED if code == -signal.SIGINT else code if code >= 0 else 128 - code


def scores(rows: dict[int, list[dict[str, Any]]], when: CheckpointConfig) -> Scores:
    """Compare the validation scores of the models that runs exported.

    Args:
        rows: seed -> rows of its metrics.jsonl.
        when: tells whether a run exports its last model or its best.
    """
    chosen = {seed: exported_row(of_it, when) for seed, of_it in rows.items()}
    names = dict.fromkeys(name for row in chosen.values() for name in row if name.startswith("val/"))
    found: Scores = {}
    for name in names:
        values = [float(row.get(name, math.nan)) for row in chosen.values()]
        both = (
            (statistics.fmean(values), statistics.stdev(values)) if all(map(math.isfinite, values)) else (math.nan,) * 2
        )
        figures = zip([*map(str, chosen), "mean", "deviation"], [*values, *both], strict=True)
        found[name] = {key: value if math.isfinite(value) else None for key, value in figures}
    return found


def exported_row(rows: list[dict[str, Any]], when: CheckpointConfig) -> dict[str, Any]:
    """Find the validation of the checkpoint that was exported: the best, of equal ones the newest, or the last."""
    measured = [row for row in rows if "val/loss" in row]
    known = [row for row in measured if math.isfinite(row.get(when.best_metric, math.nan)) and row["step"] > 0]
    if when.export == "best" and known:
        sign = 1.0 if when.best_is == "highest" else -1.0
        return max(known, key=lambda row: (sign * row[when.best_metric], row["step"]))
    return measured[-1] if measured else {}


def show(found: Scores, seeds: list[int]) -> None:
    """Print a row for each score."""

    def in_words(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    titles = ["", *(f"seed {seed}" for seed in seeds), "mean ± deviation"]
    cells = [
        [
            name.removeprefix("val/"),
            *(in_words(of_it[str(seed)]) for seed in seeds),
            f"{in_words(of_it['mean'])} ± {in_words(of_it['deviation'])}",
        ]
        for name, of_it in found.items()
    ]
    print_table(titles, cells, right=range(1, len(titles)), wide=())
