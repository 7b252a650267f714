"""Trackers beside metrics.jsonl: they have its rows, each once, and nothing else.

metrics.jsonl is the record. When a run begins, goes on or goes back, a tracker is given the rows that hold, and what a
killed process had not written, or had written too much, is put right. A file a tracker; `Feed` keeps it from harm.
"""

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.about import known_about
from sslm.runs.trackers.csv import Csv
from sslm.runs.trackers.feed import SECONDS_TO_FINISH, Feed
from sslm.runs.trackers.mlflow import Mlflow
from sslm.runs.trackers.tensorboard import TensorBoard
from sslm.runs.trackers.tracker import Row, Tracker
from sslm.runs.trackers.trackio import Trackio
from sslm.runs.trackers.wandb import Wandb
from sslm.system.errors import UserError, nearest, short

TRACKERS: dict[str, Callable[[RunFolder, dict[str, Any], float], Tracker]] = {
    "csv": lambda run, *_: Csv(run),
    "tensorboard": lambda run, *_: TensorBoard(run),
    "wandb": Wandb,
    "trackio": lambda run, settings, _: Trackio(run, settings),
    "mlflow": lambda run, settings, _: Mlflow(run, settings),
}
"""Name -> what makes a tracker, of a run, its settings, and the seconds that the tracker may take to finish."""
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""Name -> packages of which one is needed."""
TAKE_MODELS = ("wandb", "trackio", "mlflow")
"""Trackers that have a place for a model."""


def parse_trackers(text: str, flag: str = "--logger") -> list[str]:
    """`wandb,csv` -> their names; none is no name.

    Raises:
        UserError: there is no such tracker, or none stands beside others.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    allowed = [*TRACKERS, "none"] if flag == "--logger" else list(TRACKERS)
    for name in names:
        if name not in allowed:
            expected = f"expected one or several of {', '.join(allowed)}"
            raise UserError(f"{flag} {short(text)}: there is no {short(name)}{nearest(name, allowed)}; {expected}")
    if "none" in names and len(names) > 1:
        raise UserError(f"{flag} {short(text)}: none stands alone; leave it out, or the others")
    return [name for name in names if name != "none"]


def check_trackers(names: list[str], flag: str = "--logger") -> None:
    """Refuse trackers whose package is missing."""
    for name in names:
        packages = PACKAGES.get(name, ())
        if packages and not any(map(find_spec, packages)):
            install = "wandb" if name == "wandb" else f"'sslm[{name}]'"
            raise UserError(f"{flag} {name}: {name} is not installed; pip install {install}")


def check_model_trackers(names: list[str], flag: str) -> None:
    """Refuse to send a model to trackers that have no place for one."""
    if not set(names) & set(TAKE_MODELS):
        raise UserError(
            f"{flag}: of trackers, {', '.join(TAKE_MODELS)} take models; given: {', '.join(names) or 'none'}"
        )


class Trackers:
    """A run's trackers together.

    Args:
        names: which, as `parse_trackers` returns them.
        settings: the run's settings without secrets, which trackers keep, too.
        seconds_to_finish: how long `close` waits.
    """

    def __init__(
        self, names: list[str], run: RunFolder, settings: dict[str, Any], seconds_to_finish: float = SECONDS_TO_FINISH
    ) -> None:
        self.run, self.settings = run, dict(settings)
        self.seconds_to_finish = seconds_to_finish
        self.feeds = [
            Feed(name, TRACKERS[name](run, self.settings, seconds_to_finish), f"sslm track {run.path} --to {name}")
            for name in names
        ]

    def begin(self, rows: list[Row]) -> None:
        """Have these rows and no others, all of which hold; may be called again when the run goes back."""
        if about := known_about(self.run):  # it is written when the run begins
            self.settings["about"] = about
        for feed in self.feeds:
            feed.begin(rows)

    def write(self, row: Row) -> None:
        """Add the row that metrics.jsonl has just got."""
        kept = json.loads(json.dumps(row))  # it is read by other threads, at another time
        for feed in self.feeds:
            feed.write(kept)

    def hold(self, step: int) -> None:
        """Say that a checkpoint of this step is on the disk: no row up to there comes again."""
        for feed in self.feeds:
            feed.hold(step)

    def send_model(self, folder: Path) -> None:
        """Send the Hugging Face folder that the run has made to those that take models."""
        for feed in self.feeds:
            feed.send_model(folder)

    def close(self, failed: bool = False) -> None:
        """Finish what is being written, all at the same time; may be called again."""
        for feed in self.feeds:
            feed.end(failed)
        end = time.monotonic() + self.seconds_to_finish
        for feed in self.feeds:
            feed.wait(end - time.monotonic())
