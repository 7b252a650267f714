"""The run at W&B, offline if nobody is logged in or the server refuses; all rows of one step are one step there.

Offline, a run that goes on has all its rows in a new folder, and the folders of before are removed. At the server it
goes on in the same run, which keeps what it was sent.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.identity import id_of, name_of, pictures_of
from sslm.runs.trackers.tracker import Row, parts_of
from sslm.system.errors import one_line, without_secrets
from sslm.system.terminal import say

INIT_SECONDS = 30.0
"""How long W&B's server may take to begin a run."""


class Wandb:
    takes_back = False

    def __init__(self, run: RunFolder, settings: dict[str, Any], seconds_to_finish: float) -> None:
        self.folder, self.settings = run, settings
        self.seconds_to_finish = 0.75 * seconds_to_finish  # W&B itself has something to say after it has given up
        self.run: Any = None

    def begin(self, rows: list[Row]) -> None:
        self.close()
        self.run = self._start()
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        for row in rows:
            if row["step"] >= self.run.step:
                self.write(row)

    def _start(self) -> Any:
        import wandb

        try:
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
            return self._init(mode)
        except wandb.errors.Error as error:
            say(f"Warning: wandb: {one_line(error)}; it goes on offline: `wandb sync` sends the rows later")
            return self._init("offline")

    def _init(self, mode: Any) -> Any:
        import wandb

        known = id_of(self.folder)
        if mode == "offline":
            for former in (self.folder.path / "wandb").glob(f"offline-run-*-{known}"):
                shutil.rmtree(former, ignore_errors=True)
        with _arguments_without_secrets():
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "sslm"),
                name=name_of(self.folder),
                dir=str(self.folder.path),
                id=known,
                config=self.settings,
                allow_val_change=True,
                mode=mode,
                resume=None if mode == "offline" else "allow",
                settings=wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=self.seconds_to_finish),
            )

    def write(self, row: Row) -> None:
        import wandb

        parts = parts_of(row)
        values: dict[str, Any] = {"step": row["step"], **parts.numbers, **parts.texts, **parts.marks}
        if parts.samples:
            values["samples"] = wandb.Table(columns=["sample"], data=[[sample] for sample in parts.samples])
        # what comes late, as a setting that is changed when a run goes on, has no place at a step that is sent
        self.run.log(values, step=max(row["step"], self.run.step))

    def send_model(self, folder: Path) -> None:
        import wandb

        model = wandb.Artifact(f"model-{id_of(self.folder)}", type="model")
        model.add_dir(
            str(folder.resolve()), skip_cache=True, policy="immutable"
        )  # there is no need of a copy: nothing changes
        self.run.log_artifact(model)

    def close(self, failed: bool = False) -> None:
        if self.run is not None:
            for file in pictures_of(self.folder):
                self.run.save(str(file), base_path=str(self.folder.path), policy="now")
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
