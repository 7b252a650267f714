"""Trackers beside metrics.jsonl: CSV, TensorBoard, W&B. They have its rows, each once, and nothing else.

metrics.jsonl is the record. When a run begins, goes on or goes back, a tracker is given the rows that hold, and what a
killed process had not written, or had written too much, is put right.
"""

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sslm.config import Config
from sslm.config.written import to_tree
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError, without_secrets
from sslm.system.files import write_atomically

Row = dict[str, Any]
"""One object of metrics.jsonl."""


class Tracker(Protocol):
    """What has a run's rows too; nothing is written before `begin`."""

    def begin(self, rows: list[Row]) -> None:
        """Have these rows and no others; may be called again when the run goes back."""

    def write(self, row: Row) -> None:
        """Add the row that metrics.jsonl has just got."""

    def close(self, failed: bool = False) -> None:
        """Finish what is being written; may be called again."""


def check_logger(name: str) -> None:
    """Refuse a logger whose package is missing."""
    packages = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}.get(name, ())
    if packages and not any(map(find_spec, packages)):
        raise UserError(f"--logger {name}: {name} is not installed; pip install {name}")


def build_tracker(config: Config, run: RunFolder) -> Tracker | None:
    """Build the tracker of `config.logger`, which writes into the run folder; None if that is none."""
    if config.logger == "csv":
        return Csv(run)
    if config.logger == "tensorboard":
        return TensorBoard(run.path / "tensorboard")
    return Wandb(run, to_tree(config)) if config.logger == "wandb" else None


class Csv:
    """A table of the rows, csv/metrics.csv, with a column for each key that any row has."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.file = run, run.path / "csv/metrics.csv"
        self.columns: list[str] = []

    def begin(self, rows: list[Row]) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        write_atomically(
            self.file, "".join(map(self._line, [dict(zip(self.columns, self.columns, strict=True)), *rows]))
        )

    def write(self, row: Row) -> None:
        if not row.keys() <= set(self.columns):
            self.begin(self.run.rows())
            return
        with open(self.file, "a", encoding="utf-8", newline="") as stream:
            stream.write(self._line(row))

    def close(self, failed: bool = False) -> None:
        pass

    def _line(self, row: Row) -> str:
        line = io.StringIO()
        values = [row.get(column) for column in self.columns]
        texts = [json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in values]
        csv.writer(line, lineterminator="\n").writerow(texts)
        return line.getvalue()


class TensorBoard:
    """Numbers of the rows as scalars, samples as texts, in a file that is written anew when a run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, rows: list[Row]) -> None:
        library = import_module("torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX")
        self.close()
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = library.SummaryWriter(str(self.folder), flush_secs=10)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                self.writer.add_scalar(key, value, row["step"])
            elif isinstance(value, list):
                self.writer.add_text(key, "\n\n".join(value), row["step"])
            elif isinstance(value, dict):
                self.writer.add_text(key, json.dumps(value, ensure_ascii=False), row["step"])

    def close(self, failed: bool = False) -> None:
        if self.writer is not None:
            self.writer.close()


class Wandb:
    """The run at W&B, offline if nobody is logged in; rows of one step are one step there.

    Offline, a run that goes on has all its rows in a new folder, and the folders of before are removed. At the server
    it goes on in the same run, which keeps what it was sent: rows of steps that it has are not sent again.
    """

    def __init__(self, run: RunFolder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = run, settings
        self.run: Any = None

    def begin(self, rows: list[Row]) -> None:
        if self.run is not None and not self.run.offline:  # it goes back: the server takes no step twice
            return
        self.close()
        self.run = self._start()
        for row in rows:
            self.write(row)

    def _start(self) -> Any:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        if (known := known_wandb_id(self.folder)) is None:
            write_atomically(self.folder.wandb_id, known := os.urandom(4).hex())
        if mode == "offline":
            for former in (self.folder.path / "wandb").glob(f"offline-run-*-{known}"):
                shutil.rmtree(former, ignore_errors=True)
        with _arguments_without_secrets():
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sslm"),
                name=self.folder.path.resolve().name,
                dir=str(self.folder.path),
                id=known,
                config=self.settings,
                allow_val_change=True,
                mode=mode,
                resume=None if mode == "offline" else "allow",
            )

    def write(self, row: Row) -> None:
        if row["step"] >= self.run.step:
            self.run.log({key: value for key, value in row.items() if value is not None}, step=row["step"])

    def close(self, failed: bool = False) -> None:
        if self.run is not None:
            self.run.finish(exit_code=int(failed))
            self.run = None


@contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    """W&B keeps the command line, which may have a URL with a password in it."""
    arguments = sys.argv
    sys.argv = list(map(without_secrets, arguments))
    try:
        yield
    finally:
        sys.argv = arguments


def known_wandb_id(run: RunFolder) -> str | None:
    """Return the id of this run at W&B, or None if it was never there."""
    return run.wandb_id.read_text() if run.wandb_id.is_file() else None


def restore_wandb_id(run: RunFolder, known: object) -> None:
    """Go on at W&B in the run that a checkpoint names, if the run folder does not name one."""
    if known_wandb_id(run) is None and isinstance(known, str) and re.fullmatch(r"\w{1,64}", known):
        write_atomically(run.wandb_id, known)
