"""Does a run that is killed end where one that is not does? Tried with real processes and real signals.

    sslm verify-resume [--steps 30] [--kills 3] [--also "--strategy fsdp --devices 2"]… [--keep FOLDER] [any flags of train]

straight    trains so many steps without a break
killed      the same, interrupted at random steps (--seed says which) as often as --kills says, and started again each time: once
            by SIGTERM, which must save and end with 75, else by SIGKILL to all its processes
also-1 …    for each --also, the same once more, where every other start has these flags too: another strategy, another number of
            devices, other micro-batches; default: two processes for a run of one, one for a run of more

Then each is compared with the straight run: losses, gradient norms, batches and validations of each step, and the last checkpoint,
tensor by tensor: to the last bit with the same flags, to rounding with others. Runs go to a temporary folder, which stays where
something differed; one that --keep names stays anyway. Exit code 0: no difference; 1: a difference, or a run that failed.
"""

import json
import math
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from sslm.cli.parse import parse
from sslm.cli.verify_resume.trials import Trial, progress
from sslm.config import Config, differences, to_tree
from sslm.parallel import launch
from sslm.parallel.checks import check_processes
from sslm.runs.folder import RunFolder
from sslm.system import terminal
from sslm.system.errors import UserError
from sslm.system.exits import DONE, FAILED, USER_ERROR, exits_politely
from sslm.system.terminal import console, duration, say

if TYPE_CHECKING:
    from sslm.cli.verify_resume.comparison import Compared

SETS = {
    "run_dir": None,
    "max_steps": None,
    "max_tokens": "null",
    "stop_after": "null",
    "resume": "auto",
    "log_every": "1",
    "logger": "none",
    "dry_run": "false",
    "num_nodes": "1",
    "checkpoint.upload": "null",
}
"""Flags of train that this verb gives itself; None: what changes from case to case."""
ROUNDING, SHORT_ROUNDING = 1e-5, 1e-2
"""Relative tolerances for sums taken in another order: in fp32, and in 16 bits or less."""


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    own, given = take_own(list(sys.argv[1:] if arguments is None else arguments))
    steps, kills = _number(own, "steps", 30, at_least=4), _number(own, "kills", 3, at_least=2)
    flags = train_flags(given, steps)
    config = parse(flags)
    check_processes(config)
    also = own["also"] or [default_also(config)]
    configs = [config, config, *(check_also(text, config, flags) for text in also)]
    folder = working_folder(own["keep"][-1] if own["keep"] else None)
    commands = [[flags], [flags], *([flags, [*flags, *shlex.split(text)]] for text in also)]
    names = ["straight", "killed", *(f"also-{number}" for number in range(1, len(also) + 1))]
    trials = [Trial(name, folder, starts) for name, starts in zip(names, commands, strict=True)]
    terminal.keep_libraries_quiet()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is started here ends, too
    is_kept = bool(own["keep"])
    try:
        carry_out(trials, steps, kills, config)
        is_same = report(trials, configs, also, steps)
        is_kept = is_kept or not is_same
    finally:
        signal.signal(signal.SIGTERM, before)
        if not is_kept:
            shutil.rmtree(folder)
    if is_kept:
        say(f"All runs are in {folder}")
    return DONE if is_same else FAILED


# ------------------------------------------------------------------------------------------------ flags


def take_own(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split this verb's flags from those of train.

    >>> take_own(["--kills", "2", "--seed", "1", "--also", "--devices 2", "--also=--strategy fsdp"])[1]
    ['--seed', '1']
    """
    own: dict[str, list[str]] = {"steps": [], "kills": [], "also": [], "keep": []}
    rest, stream = [], iter(arguments)
    for argument in stream:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in own:
            rest.append(argument)
            continue
        value = value if equals else next(stream, "")
        if not value.strip() or (name != "also" and value.startswith("--")):
            examples = {"also": '"--strategy fsdp --devices 2"', "keep": "a folder"}
            raise UserError(f"--{name} needs a value, such as {examples.get(name, '10')}")
        own[name].append(value)
    if {"-h", "--help"} & set(rest):
        print(__doc__)
    return own, rest


def _number(own: dict[str, list[str]], name: str, default: int, at_least: int) -> int:
    text = own[name][-1] if own[name] else str(default)
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(f"--{name} {text}: expected a whole number, {at_least} or more")
    return int(text)


def train_flags(given: list[str], steps: int) -> list[str]:
    """What each start of train is given, but for its run folder: checkpoints and validations come often enough to matter."""
    typed = _names(given)
    _check_free(typed, "")
    flags = [text for name, value in SETS.items() if value is not None for text in (f"--{name}", value)]
    often = {"checkpoint.every_steps": max(steps // 10, 1), "val_every": max(steps // 3, 1)}
    flags += [text for name, value in often.items() if name not in typed for text in (f"--{name}", str(value))]
    return [*given, *flags, "--max_steps", str(steps)]


def _names(flags: Sequence[str]) -> set[str]:
    return {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}


def _check_free(typed: set[str], where: str) -> None:
    for name in SETS:
        if name in typed:
            instead = "; --steps says how many" if name in ("max_steps", "max_tokens", "stop_after") else ""
            raise UserError(f"{where}--{name}: verify-resume sets this itself, leave it out{instead}")


def default_also(config: Config) -> str:
    """Another number of processes; where one is all there can be, other micro-batches."""
    accelerator, per_node, _ = launch.devices(config)
    if per_node > 1:
        return "--strategy single --devices 1"
    share, odd = divmod(config.batch_size, 2)
    micro = config.micro_batch_size
    splits = not odd and (not isinstance(micro, int) or share % micro == 0)
    return "--strategy ddp --devices 2" if accelerator == "cpu" and splits else "--micro_batch_size 1"


def check_also(text: str, config: Config, flags: list[str]) -> Config:
    """The settings of starts that have these flags too.

    Raises:
        UserError: flags that are wrong, or that would make another run.
    """
    try:
        more = shlex.split(text)
        _check_free(_names(more), "")
        other = parse([*flags, *more])
        check_processes(other)
    except ValueError as error:  # ours, and those of shlex
        raise UserError(f'--also "{text}": {error}') from None
    if found := differences(to_tree(config), to_tree(other)):
        raise UserError(f'--also "{text}": a run that goes on may not change {"; ".join(found)}')
    return other


def working_folder(keep: str | None) -> Path:
    """Raises:
    UserError: there is something in the folder that is to be kept.
    """
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="sslm-verify-resume-"))
    folder = Path(keep).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--keep {keep}: there is something already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ------------------------------------------------------------------------------------------------ runs


def carry_out(trials: Sequence[Trial], steps: int, kills: int, config: Config) -> None:
    """All runs, one after another.

    Raises:
        UserError: what train itself found wrong with its flags.
    """
    straight, *others = trials
    chance = random.Random(config.seed)
    say(
        f"{steps} steps straight; then {len(others)} times with {kills} interruptions, at steps drawn from --seed {config.seed}"
    )
    with progress(steps) as tell:
        straight.carry_out(steps, [], chance, tell, patience=math.inf)
        if straight.code == USER_ERROR:
            raise UserError(" ".join(straight.last_lines()).removeprefix("error: "))
        for trial in others if not straight.failure else []:
            if straight.run.micro_batch_sizes.is_file():  # what fitted then may not fit now
                trial.run.path.mkdir()
                shutil.copy(straight.run.micro_batch_sizes, trial.run.path)
            signals = [signal.SIGKILL] * (kills - 1) + [signal.SIGTERM]
            chance.shuffle(signals)
            trial.carry_out(steps, signals, chance, tell, patience=120 + 10 * straight.seconds)


# ------------------------------------------------------------------------------------------------ report


def report(trials: Sequence[Trial], configs: Sequence[Config], also: Sequence[str], steps: int) -> bool:
    """Print a row for each run and what can't be told in one; whether all ended well and none differs."""
    from sslm.cli.verify_resume.comparison import compare

    straight, plain = trials[0], configs[0]
    drawn = drawn_in(straight.run, plain) if not straight.failure else []
    table = Table("Run", "Interrupted", "Ended", "Compared", "Result")
    is_good, notes = True, []
    for trial, config, flags in zip(trials, configs, ["", "", *also], strict=True):
        tolerance = 0.0 if trial.flags_stay else tolerance_for(plain, config, drawn)
        how = result = ""
        if trial.failure:
            result = f"[red]{escape(trial.failure)}[/red]"
            notes += [
                f"{trial.name}: {trial.failure}; its last words:",
                *(f"    {line}" for line in trial.last_lines()),
            ]
            is_good = False
        elif trial is not straight and trial.code == DONE:
            compared, how = compare(straight.run, trial.run, tolerance), _how(tolerance)
            result = f"[{'green' if compared.is_same else 'red'}]{escape(_result(compared, steps, tolerance))}[/]"
            is_good = is_good and compared.is_same
        if math.isinf(tolerance):
            notes.append(
                f"{trial.name}: {', '.join(drawn)}: drawn for each micro-batch, and these are others here; with the same "
                f"--micro_batch_size everywhere, or without it, more than the batches can be compared"
            )
        ended = (
            duration(trial.seconds) if trial.code == DONE else "never" if trial.code is None else f"exit {trial.code}"
        )
        name = f"{trial.name}\n[dim]{escape(flags)}[/dim]" if flags else trial.name
        table.add_row(name, "\n".join(trial.interruptions), ended, how, result)
    console().print(table, highlight=False)
    for note in notes:
        say(note)
    return is_good


def _how(tolerance: float) -> str:
    return {0.0: "bitwise", math.inf: "batches"}.get(tolerance, f"to {tolerance:g}")


def _result(compared: "Compared", steps: int, tolerance: float) -> str:
    furthest = compared.furthest
    apart = f"{furthest.by:.3g} ({furthest.name})" if furthest is not None else "unknown"
    if compared.is_same:
        if math.isinf(tolerance):
            return f"no difference in the batches of {steps} steps"
        close = f"; largest difference of tensors: {apart}" if tolerance else ""
        return f"no difference in {steps} steps, {compared.parameters:,} parameters{close}"
    parts = [str(compared.first)] if compared.first is not None else []
    if compared.tensor is not None:
        parts.append(f"{compared.tensor.name} is the first tensor that differs; the largest difference is {apart}")
    return "; ".join(parts)


def tolerance_for(plain: Config, other: Config, drawn: Sequence[str]) -> float:
    """How far runs may be apart, relative to losses and gradient norms, when some starts have other flags."""
    if drawn and (drawn_by(plain) != drawn_by(other) or other.micro_batch_size == "auto"):
        return math.inf
    return ROUNDING if _is_fp32(plain) and _is_fp32(other) else SHORT_ROUNDING


def drawn_by(config: Config) -> tuple[Any, ...]:
    """What the random numbers of a forward pass depend on, beside the position of its first sequence."""
    accelerator, per_node, _ = launch.devices(config)
    shares = launch.data_parallel_size(config)
    return accelerator, config.compile, per_node // shares, config.micro_batch_size or config.batch_size // shares


def _is_fp32(config: Config) -> bool:
    return config.precision == "32" or (config.precision == "auto" and launch.devices(config)[0] == "cpu")


def drawn_in(run: RunFolder, config: Config) -> list[str]:
    """What a run draws at random in each forward pass."""
    from sslm.runs.checkpoints.folder import newest_first

    drawn = not_zero(json.loads((newest_first(run.checkpoints)[0] / "model/config.json").read_text()))
    if config.robust.embedding_noise:
        drawn.append(f"robust.embedding_noise {config.robust.embedding_noise:g}")
    return [*drawn, "robust.adversarial freelb"] if config.robust.adversarial == "freelb" else drawn


def not_zero(model_config: Mapping[str, Any]) -> list[str]:
    """Dropout and noise in a model's config, and in those inside it; not that of heads which are not trained here.

    >>> not_zero({"attention_dropout": 0.1, "summary_first_dropout": 0.1, "encoder": {"layerdrop": 0, "dropout_rate": 0.2}})
    ['attention_dropout 0.1', 'dropout_rate 0.2']
    """
    found = []
    for name, value in model_config.items():
        if isinstance(value, dict):
            found += not_zero(value)
        elif (
            re.search("drop|noise", name)
            and not re.search("summary|classif|qa_", name)
            and isinstance(value, float)
            and value
        ):
            found.append(f"{name} {value:g}")
    return found
