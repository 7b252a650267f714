"""The run folder's contract: what lies where in it, and who may go on with it."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from errno import EACCES, ENOTDIR
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from sslm.config import SECTIONS, Config
from sslm.config.ramp import parse_lengths
from sslm.config.written import cleaned, to_tree, to_yaml
from sslm.runs.changes import differences, in_words, may_change, parse_resume_with
from sslm.system.errors import RunFailed, UserError, without_secrets
from sslm.system.files import append_json_lines, is_size, json_lines, write_atomically
from sslm.system.plain_yaml import BadYaml, load
from sslm.system.terminal import plural, say

State = Literal["running", "done", "stopped", "failed"]


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved; enough to run again
        self.status = path / "status.json"  # running | done | stopped | failed, exit code, step, time, reason
        self.metrics = path / "metrics.jsonl"  # one object per logged step and per validation
        self.checkpoints = path / "checkpoints"  # step-000100/, whole or not there, and so on; `latest` names one
        self.export = path / "export"  # a plain Hugging Face folder
        self.curves = path / "curves.png"  # loss, learning rate, throughput over tokens
        self.predictions = path / "predictions.jsonl"  # held-out rows as the exported model predicts them (fine-tuning)
        self.predicted = path / "predicted.png"  # what is right against what is predicted
        self.micro_batch_sizes = path / "micro_batch_size.json"  # what `auto` found, by kind of devices and strategy
        self.amendments = path / "amendments.jsonl"  # what the data stream could not know beforehand (a bad shard)
        self.changes = path / "changes.jsonl"  # what a person has changed on purpose (--resume_with), and from where on
        self.anomalies = path / "anomalies.jsonl"  # one object per step out of the ordinary, with its examples' texts
        self.profile = path / "profile"  # of --profile: a trace, a snapshot of a GPU's memory, and a report
        self.stacks = path / "stacks"  # heartbeats of the running ranks, and after a stall where each thread was
        self.former_stacks = path / "stacks.former"  # those of the stall before
        self.about = path / "about.json"  # with what it was last trained: versions, git, machine, data
        self.wandb_id = path / "wandb_id"  # of the run at its trackers, if it is at any
        self.lock = path / "lock"  # held by the running process; the lock dies with it

    @contextmanager
    def locked(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the folder until this process ends, however it ends. A folder that stays empty is removed afterwards.

        Raises:
            UserError, RunFailed (after waiting): another process trains here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=patience_seconds)
        except Timeout:
            why = "another process is training in this run folder; wait for it to end, or give another --run_dir"
            raise (RunFailed if patience_seconds else UserError)(f"{self.path}: {why}") from None
        try:
            yield
        finally:
            lock.release()
            if os.listdir(self.path) == [self.lock.name]:
                shutil.rmtree(self.path)

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Refuse what `locked` refuses at once, and leave no trace.

        Raises:
            UserError: another process trains here.
            OSError: the folder can't be made, or written to.
        """
        there = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        code = 0 if os.access(there, os.W_OK) else EACCES
        if code := code if there.is_dir() else ENOTDIR:
            raise OSError(code, os.strerror(code), str(self.path))
        with self.locked() if self.lock.exists() else nullcontext():
            yield

    def check_config(self, config: Config) -> None:
        """Refuse a folder that belongs to another run; without a checkpoint it belongs to none, and nothing is lost."""
        if self.config.is_file() and any(self.checkpoints.glob("step-*")):
            check_same_run(str(self.path), self.config.read_bytes(), config)

    def write_config(self, config: Config) -> None:
        """Write what the run has; another change has to be named anew."""
        write_atomically(self.config, to_yaml(replace(config, resume_with=None)))

    def record_changes(self, config: Config, step: int, position: int, origin: "RunFolder") -> None:
        """Put on record what differs from the settings of the run, this or another, that goes on from `step`.

        This comes before `write_config`: after a kill between the two the same command finds the same entry.
        """
        if origin.path != self.path:
            self.changes.unlink(missing_ok=True)  # begun elsewhere, and without a checkpoint of its own so far
        if origin.config.is_file():
            old = settings_in(str(origin.path), origin.config.read_bytes())
            if changed := differences(old, to_tree(config)):
                tokens = position * config.window_tokens
                entry = {
                    "step": step,
                    "tokens": tokens,
                    "changed": {name: list(values) for name, values in changed.items()},
                }
                if entry not in json_lines(self.changes, say):
                    append_json_lines(self.changes, [entry])
                say(f"Changed from step {step} on: {in_words(changed)}")

    def write_status(self, state: State, *, step: int, exit_code: int | None = None, reason: str = "") -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        status = {"state": state, "exit_code": exit_code, "step": step, "time": now, "reason": without_secrets(reason)}
        write_atomically(self.status, json.dumps(status, indent=1) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Drop the rows past `step`, which come again (past 0: all rows), and a torn last line."""
        if self.metrics.is_file():
            rows = [(line, parse_row(line)) for line in _lines(self.metrics)]
            if damaged := [number for number, (_, row) in enumerate(rows[:-1], start=1) if row is None]:
                say(f"{self.metrics}: {plural(len(damaged), 'damaged line')} left out, the first is line {damaged[0]}")
            kept = [line for line, row in rows if row and row["step"] <= step and step > 0]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept))

    def record_anomaly(self, entry: dict[str, Any]) -> None:
        """Append to anomalies.jsonl, unless it is there already: a run that goes back meets some again."""
        text = self.anomalies.read_text(encoding="utf-8", errors="replace") if self.anomalies.is_file() else ""
        lines = text.split("\n")
        new = json.dumps(entry, ensure_ascii=False)
        beginning = new.partition(', "loss"')[0]  # step and positions
        if not any(line.startswith(beginning) for line in lines[:-1]):
            lines[-1:] = [new, ""]  # in place of a last line that was torn
            write_atomically(self.anomalies, "\n".join(lines))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        return [row for line in _lines(self.metrics) if (row := parse_row(line))] if self.metrics.is_file() else []


def run_of(checkpoint: Path) -> RunFolder:
    """The run folder in which a checkpoint lies."""
    return RunFolder(checkpoint.parent.parent)


def window_tokens_in(settings: dict[str, Any]) -> int | None:
    """Read from a run's settings the tokens of an example, its longest sequence; None if they are damaged."""
    value: Any = settings.get("seq_len")
    with suppress(UserError):
        return parse_lengths(value).largest if isinstance(value, str) or is_size(value) else None
    return None


def check_same_run(where: str, config_yaml: bytes, config: Config) -> None:
    """Refuse to go on with the run of a folder if it was begun with other settings.

    Raises:
        UserError: keys differ that a resumed run may not change; it names them.
    """
    named, old = parse_resume_with(config.resume_with), settings_in(where, config_yaml)
    found = {name: values for name, values in differences(old, to_tree(config)).items() if not may_change(name, named)}
    if found:
        instead = "Give the old values to resume it, or another --run_dir to start anew"
        if all(may_change(name, found) for name in found):
            instead += f", or, to change this from here on, --resume_with {','.join([*named, *found])}"
        raise UserError(f"{where} belongs to a run with other settings: {in_words(found)}. {instead}")


def settings_in(where: str, config_yaml: bytes) -> dict[str, Any]:
    """Read a run's settings; UserError if they are damaged."""
    try:
        settings = cleaned(load(config_yaml))
    except (BadYaml, UnicodeDecodeError):
        settings = None
    sections = [section for section in SECTIONS if section]
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name, {}), dict) for name in sections):
        raise UserError(f"{where}/config.yaml: damaged; remove it, or give another --run_dir")
    return settings


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def parse_row(line: str) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl into a row, or None if it is torn or no row of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    numbers = [value for key, value in row.items() if "/" in key]
    is_whole = isinstance(row.get("step"), int) and isinstance(row.get("tokens"), int)
    return row if is_whole and all(isinstance(number, int | float) for number in numbers) else None


def pretrained_folder(config: Config) -> str | None:
    """--model.pretrained as transformers takes it: of a run folder, its export."""
    given = config.model.pretrained
    run = RunFolder(Path(given or ""))
    if given is None or not (run.checkpoints.is_dir() or run.export.is_dir()):
        return given
    if not (run.export / "config.json").is_file():
        instead = f"make one of its newest checkpoint: sslm export {given} --out {given}/export"
        raise UserError(f"--model.pretrained {given}: this run has not ended yet and has no export; {instead}")
    return str(run.export)
