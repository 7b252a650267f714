"""Kill a run at random steps, resume it, and compare it with one that was not killed: real processes, real signals.

    sslm verify-resume [--steps 30] [--kills 3] [--also "--strategy fsdp --devices 2"]… [--keep FOLDER] [flags of train]

straight    trains without a break
killed      is interrupted at random steps (drawn from --seed) and resumed each time: once by SIGTERM, which must save
            and exit with 75, otherwise by SIGKILL to all its processes
also-1 …    for each --also, the same, but every other start has these flags too: another strategy, number of devices or
            micro-batch size; default: two processes for a run of one, one for a run of more

Each is compared with the straight run: losses, gradient norms, batches and validations of each step, and the last
checkpoint, tensor by tensor: bitwise with the same flags, to rounding with others. Runs go to a temporary folder, which
stays only if something differs. Exit code 0: no difference; 1: a difference, or a run that failed.
"""

import argparse
import json
import math
import random
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sslm.cli.parse import parse, split_flags
from sslm.cli.verify_resume.comparison import Comparison, compare
from sslm.cli.verify_resume.trials import Trial, progress
from sslm.config import Config
from sslm.config.written import to_tree
from sslm.parallel import launch
from sslm.parallel.checks import check_processes
from sslm.parallel.cores import multiplies_in_bf16
from sslm.runs.changes import differences, in_words
from sslm.runs.checkpoints.folder import newest_first
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.exits import DONE, FAILED, USER_ERROR, exits_politely
from sslm.system.paths import local_path
from sslm.system.signals import give_back, take_signals
from sslm.system.terminal import console, duration, keep_libraries_quiet, plural, say

OFF = dict.fromkeys(("max_tokens", "stop_after", "checkpoint.upload"), "null")
FIXED = OFF | {"resume": "auto", "log_every": "1", "logger": "none", "dry_run": "false", "num_nodes": "1"}
"""Flags of train that have the same value in each start; `run_dir` and `max_steps` are set here, too."""
ROUNDING, SHORT_ROUNDING = 1e-5, 1e-2
"""Relative tolerances for sums taken in another order: in fp32, and in 16 bits or less."""


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options, typed = _take_own(arguments)
    steps, kills = _number("--steps", options.steps, at_least=4), _number("--kills", options.kills, at_least=2)
    flags = train_flags(typed, steps)
    config = parse(flags)
    check_processes(config)
    variations = options.also or [default_variation(config)]
    varied = [(variation, varied_config(variation, config, flags)) for variation in variations]
    folder = working_folder(options.keep)
    trials = [Trial(name, folder, flags, config) for name in ("straight", "killed")]
    trials += [Trial(f"also-{i}", folder, flags, other, text) for i, (text, other) in enumerate(varied, 1)]
    keep_libraries_quiet()
    is_kept = options.keep is not None
    before = take_signals(signal.default_int_handler, (signal.SIGTERM, signal.SIGHUP))  # what is started here ends, too
    try:
        carry_out(trials, steps, kills)
        is_same = report(trials, steps)
        is_kept = is_kept or not is_same
    finally:
        give_back(before)
        if not is_kept:
            shutil.rmtree(folder)
    if is_kept:
        say(f"All runs are in {folder}")
    return DONE if is_same else FAILED


# ------------------------------------------------------------------------------------------------ flags


def _take_own(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split this verb's flags from those of train."""
    try:
        return flag_parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        examples = {"--also": '--also="--devices 2"', "--keep": "--keep runs/verified"}
        name = str(error.argument_name)
        raise UserError(f"{name} needs a value, such as {examples.get(name, f'{name} 10')}") from None


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's own flags."""
    parser = argparse.ArgumentParser(
        prog="sslm verify-resume",
        usage=argparse.SUPPRESS,
        description=__doc__,
        epilog="`sslm train --help` lists the flags of train.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--steps", default="30", help="optimizer steps of each run; default: 30")
    parser.add_argument("--kills", default="3", help="interruptions of each run; default: 3")
    also, keep = "more flags for every other start of one run", "keep all runs there; default: a temporary folder"
    parser.add_argument("--also", metavar="FLAGS", action="append", type=_filled, help=also)
    parser.add_argument("--keep", metavar="FOLDER", type=_filled, help=keep)
    return parser


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError(text)  # which the parser reports as a value that is wrong
    return text


def _number(name: str, text: str, at_least: int) -> int:
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(f"{name} {text}: expected a whole number, {at_least} or more")
    return int(text)


def train_flags(typed: list[str], steps: int) -> list[str]:
    """Complete the flags of train, but for the run folder; checkpoints and validations come often enough to matter."""
    often = {"checkpoint.every_steps": max(steps // 10, 1), "val_every": max(steps // 3, 1)}
    names = _checked_names(typed)
    settings = {name: value for name, value in often.items() if name not in names} | FIXED | {"max_steps": steps}
    return [*typed, *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]


def _checked_names(flags: list[str]) -> set[str]:
    """Return the names of these flags; none may be one that this verb sets."""
    names = {flag.name for flag in split_flags(flags)}
    for name in ("run_dir", "max_steps", *FIXED):
        if name in names:
            instead = "; --steps says how many" if name in ("max_steps", "max_tokens", "stop_after") else ""
            raise UserError(f"--{name}: verify-resume sets this itself, leave it out{instead}")
    return names


def default_variation(config: Config) -> str:
    """Choose flags that change the number of processes or, if only one is possible, the micro-batch size."""
    accelerator, per_node, _ = launch.devices(config)
    if per_node > 1:
        return "--strategy single --devices 1"
    half, remainder = divmod(config.batch_ramp.common_divisor, 2)
    micro = config.micro_batch_size
    can_halve = not remainder and (not isinstance(micro, int) or half % micro == 0)
    return "--strategy ddp --devices 2" if accelerator == "cpu" and can_halve else "--micro_batch_size 1"


def varied_config(variation: str, config: Config, flags: list[str]) -> Config:
    """Parse the flags with those of a variation added; a UserError if they are wrong, or would make another run."""
    try:
        added = shlex.split(variation)
        _checked_names(added)
        varied = parse([*flags, *added])
        check_processes(varied)
    except ValueError as error:  # ours, and those of shlex
        raise UserError(f'--also "{variation}": {error}') from None
    if changes := differences(to_tree(config), to_tree(varied)):
        raise UserError(f'--also "{variation}": a run that goes on may not change {in_words(changes)}')
    return varied


def working_folder(keep: str | None) -> Path:
    """Make the folder for all runs: a temporary one, or the one to keep, which must be empty."""
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="sslm-verify-resume-"))
    folder = local_path(keep).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--keep {keep}: there is something already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ------------------------------------------------------------------------------------------------ runs


def carry_out(trials: Sequence[Trial], steps: int, kills: int) -> None:
    """Carry out all runs, one after another; a UserError if train itself finds something wrong with its flags."""
    straight, *others = trials
    seed = straight.config.seed
    rng = random.Random(seed)
    again = f"{plural(len(others), 'time')} again with {plural(kills, 'interruption')} each"
    say(f"{steps} steps without interruption, then {again}, at random steps (drawn from --seed {seed})")
    with progress(steps) as show_step:
        straight.carry_out(steps, [], rng, show_step, patience=math.inf)
        if straight.code == USER_ERROR:
            raise UserError(" ".join(straight.last_lines()).removeprefix("error: "))
        for trial in others if not straight.failure else []:
            if straight.run.micro_batch_sizes.is_file():  # what fitted then may not fit now
                trial.run.path.mkdir()
                shutil.copy(straight.run.micro_batch_sizes, trial.run.path)
            signals = [signal.SIGKILL] * (kills - 1) + [signal.SIGTERM]
            rng.shuffle(signals)
            trial.carry_out(steps, signals, rng, show_step, patience=120 + 10 * straight.seconds)


# ------------------------------------------------------------------------------------------------ report


def report(trials: Sequence[Trial], steps: int) -> bool:
    """Print a row for each run, and notes; return whether all ended well and none differs."""
    straight = trials[0]
    drawn = drawn_in(straight.run, straight.config) if not straight.failure else []
    table = Table("Run", "Interrupted", "Ended", "Compared", "Result")
    is_good, notes = True, []
    for trial in trials:
        tolerance = tolerance_for(straight.config, trial.config, drawn) if trial.variation else 0.0
        how, result, is_same = "", trial.failure, not trial.failure
        if trial.failure:
            notes += [f"{trial.name}: {trial.failure}; its last words:", *(f"    {x}" for x in trial.last_lines())]
        elif trial is not straight and trial.code == DONE:
            how = {0.0: "bitwise", math.inf: "batches"}.get(tolerance, f"to {tolerance:g}")
            comparison = compare(straight.run, trial.run, tolerance)
            result, is_same = _result(comparison, steps, tolerance), comparison.is_same
        is_good = is_good and is_same
        result = f"[{'green' if is_same else 'red'}]{escape(result)}[/]"
        if math.isinf(tolerance):
            notes.append(
                f"{trial.name}: {', '.join(drawn)}: drawn for each micro-batch, and these are others here; with the "
                "same --micro_batch_size everywhere, or without it, more than the batches can be compared"
            )
        exited = "never" if trial.code is None else f"exit {trial.code}"
        ended = duration(trial.seconds) if trial.code == DONE else exited
        name = f"{trial.name}\n[dim]{escape(trial.variation)}[/dim]" if trial.variation else trial.name
        table.add_row(name, "\n".join(trial.interruptions), ended, how, result)
    console().print(table, highlight=False)
    for note in notes:
        say(note)
    return is_good


def _result(comparison: Comparison, steps: int, tolerance: float) -> str:
    farthest = comparison.farthest
    distance = f"{farthest.largest:.3g} ({farthest.name})" if farthest is not None else "unknown"
    if comparison.is_same and math.isinf(tolerance):
        return f"no difference in the batches of {steps} steps"
    if comparison.is_same:
        rounding = f"; largest difference of tensors: {distance}" if tolerance else ""
        return f"no difference in {steps} steps, {comparison.parameters:,} parameters{rounding}"
    parts = [str(comparison.first)] if comparison.first is not None else []
    if comparison.tensor is not None:
        name = comparison.tensor.name
        parts.append(f"{name} is the first tensor that differs; the largest difference is {distance}")
    return "; ".join(parts)


def tolerance_for(plain: Config, varied: Config, drawn: Sequence[str]) -> float:
    """Choose how far a varied run's losses and gradient norms may be from the plain one's (`drawn`: see `drawn_in`)."""
    if drawn and (_randomness_key(plain) != _randomness_key(varied) or varied.micro_batch_size == "auto"):
        return math.inf
    return ROUNDING if _is_fp32(plain) and _is_fp32(varied) else SHORT_ROUNDING


def _randomness_key(config: Config) -> tuple[Any, ...]:
    """Return all that a forward pass' random numbers depend on, except the position of its first sequence."""
    (accelerator, per_node, _), data_parallel = launch.devices(config), launch.data_parallel_size(config)
    rows = config.micro_batch_size or config.batch_ramp.common_divisor // data_parallel
    return accelerator, config.compile, per_node // data_parallel, rows


def _is_fp32(config: Config) -> bool:
    is_default = config.precision == "auto" and launch.devices(config)[0] == "cpu" and not multiplies_in_bf16()
    return config.precision == "32" or is_default


def drawn_in(run: RunFolder, config: Config) -> list[str]:
    """List what a run draws at random in each forward pass."""
    drawn = not_zero(json.loads((newest_first(run.checkpoints)[0] / "model/config.json").read_text()))
    if config.robust.embedding_noise:
        drawn.append(f"robust.embedding_noise {config.robust.embedding_noise:g}")
    return [*drawn, "robust.adversarial freelb"] if config.robust.adversarial == "freelb" else drawn


def not_zero(model_config: Mapping[str, Any]) -> list[str]:
    """List dropout and noise in a model's config and those nested in it, except of heads which are not trained here.

    >>> not_zero({"summary_first_dropout": 0.1, "attention_dropout": 0.1, "encoder": {"layerdrop": 0, "noise": 0.2}})
    ['attention_dropout 0.1', 'noise 0.2']
    """
    drawn = []
    for name, value in model_config.items():
        if isinstance(value, dict):
            drawn += not_zero(value)
        elif isinstance(value, float) and value and re.search("drop|noise", name):
            drawn += [] if re.search("summary|classif|qa_", name) else [f"{name} {value:g}"]
    return drawn
