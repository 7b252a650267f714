"""The run folder's contract.

config.yaml              resolved; enough to run again
status.json              running | done | stopped | failed, exit code, step, time, reason
metrics.jsonl            one object per logged step and per validation
checkpoints/step-000100/ whole or not there (runs/checkpoints); `latest` names one
export/                  a plain Hugging Face folder
curves.png               loss, learning rate, throughput over tokens
micro_batch_size.json    what `--micro_batch_size auto` found, for each kind of devices and strategy
amendments.jsonl         what the data stream could not know beforehand (a shard that turned out to be bad)
anomalies.jsonl          one object per step out of the ordinary, with the texts of its examples
stacks/                  heartbeats of the running ranks, and after a stall where each thread was
stacks.former/           those of the stall before
lock                     held by the running process; the lock dies with it
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from sslm.config import Config, differences, to_tree, to_yaml
from sslm.system.errors import RunFailed, UserError
from sslm.system.files import write_atomically
from sslm.system.plain_yaml import BadYaml, load

State = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def amendments(self) -> Path:
        return self.path / "amendments.jsonl"

    @property
    def anomalies(self) -> Path:
        return self.path / "anomalies.jsonl"

    @property
    def micro_batch_sizes(self) -> Path:
        return self.path / "micro_batch_size.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @contextmanager
    def locked(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the folder until this process ends, however it ends. A folder that stays empty is removed afterwards.

        Args:
            patience_seconds: how long to wait for who holds it.

        Raises:
            UserError, RunFailed (after waiting): another process trains here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=patience_seconds)
        except Timeout:
            raise (RunFailed if patience_seconds else UserError)(
                f"{self.path}: another process is training in this run folder; wait for it to end, or give another "
                "--run_dir"
            ) from None
        try:
            yield
        finally:
            lock.release()
            if os.listdir(self.path) == ["lock"]:
                shutil.rmtree(self.path)

    def check_config(self, config: Config) -> None:
        """Refuse a folder that belongs to another run. Without a checkpoint it belongs to none: nothing would be lost.

        Raises:
            UserError: keys differ that a resumed run may not change; it names them.
        """
        if self.config.is_file() and any(self.checkpoints.glob("step-*")):
            check_same_run(str(self.path), self.config.read_bytes(), config)

    def write_config(self, config: Config) -> None:
        write_atomically(self.config, to_yaml(config))

    def write_status(
        self, state: State, *, exit_code: int | None = None, step: int | None = None, reason: str = ""
    ) -> None:
        status = {
            "state": state,
            "exit_code": exit_code,
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "reason": reason,
        }
        write_atomically(self.path / "status.json", json.dumps(status, indent=1) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Drop the rows past `step`, which come again (past 0: all rows), and a torn last line."""
        if not self.metrics.is_file():
            return
        kept = [line for line in self._lines() if (row := _row(line)) and row["step"] <= step and step > 0]
        write_atomically(self.metrics, "".join(line + "\n" for line in kept))

    def record_anomaly(self, entry: dict[str, Any]) -> None:
        """Append to anomalies.jsonl, unless it is there already: a run that goes back meets some again."""
        lines = (
            self.anomalies.read_text(encoding="utf-8", errors="replace").split("\n")
            if self.anomalies.is_file()
            else [""]
        )
        known = [json.loads(line) for line in lines[:-1]]
        if not any(one["step"] == entry["step"] and one["positions"] == entry["positions"] for one in known):
            lines[-1:] = [json.dumps(entry, ensure_ascii=False), ""]  # in place of a last line that was torn
            write_atomically(self.anomalies, "\n".join(lines))

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id"

    def _lines(self) -> list[str]:
        return self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        return [row for line in self._lines() if (row := _row(line))]


def check_same_run(where: str, config_yaml: bytes, config: Config) -> None:
    """Refuse to go on with a run that was begun with other settings.

    Args:
        where: the run's folder.
        config_yaml: that run's.

    Raises:
        UserError: keys differ that a resumed run may not change; it names them.
    """
    try:
        old = load(config_yaml)
    except (BadYaml, UnicodeDecodeError):
        old = None
    new = to_tree(config)
    sections = [key for key, value in new.items() if isinstance(value, dict)]
    if not isinstance(old, dict) or not all(isinstance(old.get(section, {}), dict) for section in sections):
        raise UserError(f"{where}/config.yaml: damaged; remove it, or give another --run_dir")
    if found := differences(old, new):
        raise UserError(
            f"{where} belongs to a run with other settings: {'; '.join(found)}. Give the old values to go on with "
            f"it, or another --run_dir to start anew"
        )


def _row(line: str) -> dict[str, Any] | None:
    """Parse a line into a row, or None if it is torn or no row of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not isinstance(row.get("tokens"), int):
        return None
    is_sound = all(isinstance(value, int | float) for key, value in row.items() if "/" in key)
    return row if is_sound else None


def pretrained_folder(config: Config) -> str | None:
    """--model.pretrained as transformers takes it: of a run folder, its export."""
    given = config.model.pretrained
    if given is None:
        return None
    run = RunFolder(Path(given))
    if not (run.checkpoints.is_dir() or run.export.is_dir()):
        return given
    if not (run.export / "config.json").is_file():
        raise UserError(
            f"--model.pretrained {given}: this run has not ended yet and has no export; make one of its newest "
            f"checkpoint: sslm export {given} --out {given}/export"
        )
    return str(run.export)
