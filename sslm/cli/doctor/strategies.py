"""Three real steps of a tiny model under each strategy that this machine can."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from sslm.cli.doctor.finding import Finding
from sslm.parallel.launch import STRATEGIES
from sslm.system.errors import UserError, nearest, without_secrets
from sslm.system.ranks import die_with_parent, under_srun, under_torchrun
from sslm.system.terminal import plural

USUAL = ("single", "ddp", "fsdp", "deepspeed_2")
"""What is tried if nothing is named; the last if its package is installed."""
SECONDS, SECONDS_TO_DIE = 240.0, 10.0
STEPS = 3
TINY = (
    "--objective causal_lm --model.model_type llama --model.hidden_size 32 --model.intermediate_size 64 "
    "--model.num_hidden_layers 2 --model.num_attention_heads 2 --data.tokenizer bpe:512 --seq_len 32 "
    f"--data.val_sequences 8 --optim.warmup_steps 1 --log_every 1 --max_steps {STEPS}"
).split()
"""Flags of a run of seconds on the embedded text."""


class Trial(NamedTuple):
    """A strategy on devices of this machine."""

    strategy: str
    accelerator: str
    """cpu or gpu."""
    devices: int

    @property
    def name(self) -> str:
        return f"{self.strategy} on {plural(self.devices, 'GPU' if self.accelerator == 'gpu' else 'CPU process')}"

    def command(self, folder: Path) -> list[str]:
        """Build what is typed for it; its run and the cache lie in `folder`."""
        traits = STRATEGIES[self.strategy]
        replicas = ["--fsdp.replicas", str(self.devices)] if traits.replicates_shards else []
        launch = {
            "strategy": self.strategy,
            "accelerator": self.accelerator,
            "devices": self.devices,
            "batch_size": 2 * self.devices,
            "run_dir": self.run(folder),
            "data.cache_dir": folder / "cache",
        }
        flags = [word for flag, value in launch.items() for word in (f"--{flag}", str(value))]
        return [sys.executable, "-m", "sslm.train", *TINY, *flags, *replicas]

    def run(self, folder: Path) -> Path:
        return folder / f"{self.strategy}-{self.accelerator}"


def parsed(text: str | None) -> list[str]:
    """Split what `--strategies` names.

    Raises:
        UserError: there is no such strategy.
    """
    if text is None:
        return [name for name in USUAL if not STRATEGIES[name].zero_stage or find_spec("deepspeed")]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise UserError(f"--strategies {name}: there is no such strategy{nearest(name, STRATEGIES)}; give {known}")
    if not names:
        raise UserError(f"--strategies: names none; give some of {', '.join(STRATEGIES)}, or --quick")
    return names


def trials(names: Sequence[str], gpus: int | None = None) -> Iterator[Trial]:
    """Yield what can be tried: on the GPUs, if there are any; DDP on two CPU processes in any case.

    Args:
        gpus: how many there are; default: as torch says.
    """
    gpus = torch.cuda.device_count() if gpus is None else gpus
    for name in names:
        traits = STRATEGIES[name]
        if traits.is_single:
            yield Trial(name, "gpu" if gpus else "cpu", 1)
            continue
        if gpus > 1:
            are_two = traits.tensor_parallel or traits.replicates_shards or traits.is_pipeline
            yield Trial(name, "gpu", 2 if are_two else gpus)
        if gpus < 2 or name == "ddp":
            yield Trial(name, "cpu", 2)


def not_here() -> Finding | None:
    """Say why nothing is tried, if a launcher has started this very command as one of many."""
    if not (under_torchrun() or under_srun()):
        return None
    launcher = "torchrun" if under_torchrun() else "srun"
    return Finding(
        "strategies", f"not tried under {launcher}, which starts runs itself", "note", "", "sslm doctor alone"
    )


def tried(trial: Trial, folder: Path, environ: Mapping[str, str], seconds: float = SECONDS) -> Finding:
    """Train three steps in a process with these variables, and tell how long it took or why it failed."""
    start, hurts = time.monotonic(), f"--strategy {trial.strategy}"
    with subprocess.Popen(
        trial.command(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
    ) as child:
        try:
            _, said = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            again = "sslm train with --max_steps 3, to watch it"
            return Finding(trial.name, f"not done within {seconds:g} s", "bad", hurts, again)
        finally:
            end_group(child)
    if child.returncode:
        return Finding(trial.name, last_words(said) or f"ended with {child.returncode}", "bad", hurts)
    losses = losses_of(trial.run(folder))
    if len(losses) != STEPS or not all(map(math.isfinite, losses)):
        return Finding(trial.name, f"its losses are {losses}", "bad", hurts)
    return Finding(trial.name, f"{STEPS} steps, in {time.monotonic() - start:.0f} s from start to end")


def end_group(child: "subprocess.Popen[str]") -> None:
    """Kill what is left of a child and of all that it started, and wait until nobody writes any longer."""
    end = time.monotonic() + SECONDS_TO_DIE
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < end:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(SECONDS_TO_DIE)
            time.sleep(0.02)


def last_words(said: str) -> str:
    """Take the sentence of an error out of what went to stderr."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return without_secrets((sentences or lines or [""])[-1])[:300]


def losses_of(run: Path) -> list[float]:
    """Read the losses that a run has logged."""
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [float(row["train/loss"]) for row in rows if "train/loss" in row]
