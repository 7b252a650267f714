"""sslm ckpt ls: what lies in a run's folder of checkpoints. Quick: nothing is checksummed."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslm.runs.checkpoints.folder import damage_of, files_of, latest_in, read_state, shards_of
from sslm.runs.find import LEFT_OVER, folder_of, is_checkpoint
from sslm.runs.folder import window_tokens_in
from sslm.system.errors import UserError
from sslm.system.plain_yaml import load
from sslm.system.terminal import bytes_in_words, count, plural, print_table

MOST = 1 << 63
"""Larger numbers are not believed."""


@dataclass
class Entry:
    """A line of the list; None stands for what is unknown."""

    path: Path
    num_bytes: int
    num_shards: int
    step: int | None = None
    position: int | None = None
    """Examples consumed."""
    tokens: int | None = None
    version: str | None = None
    metric: tuple[str, float] | None = None
    marks: list[str] = field(default_factory=list)


def listed(given: str | Path) -> list[Entry]:
    """Entries by step of a run folder, a folder of checkpoints or a checkpoint, with what killed processes left."""
    paths, folder = [Path(given)], Path(given).parent
    if not is_checkpoint(Path(given)):
        folder = folder_of(given)
        there = [path for path in folder.iterdir() if path.is_dir()]
        paths = [path for path in there if is_checkpoint(path) or LEFT_OVER.fullmatch(path.name)]
    settings = _settings(folder.parent / "config.yaml")
    entries = []
    for path in sorted(paths, key=_order):
        with suppress(FileNotFoundError):  # the run is training, and has removed it just now
            entries.append(_entry(path, settings))
    _mark(entries, folder, settings)
    return entries


def show(entries: list[Entry]) -> None:
    titles = ("name", "step", "tokens", "size", "files", "metric", "sslm", "")
    cells = [
        (
            entry.path.name,
            "-" if entry.step is None else str(entry.step),
            _progress(entry),
            bytes_in_words(entry.num_bytes),
            str(entry.num_shards),
            f"{entry.metric[0]} {entry.metric[1]:.4f}" if entry.metric else "-",
            entry.version or "-",
            ", ".join(entry.marks),
        )
        for entry in entries
    ]
    print_table(titles, cells, right=range(1, 5), wide=(5, 7))


def _progress(entry: Entry) -> str:
    """Tokens; where they are unknown, examples."""
    if entry.tokens is not None:
        return count(entry.tokens)
    return "-" if entry.position is None else plural(entry.position, "example")


def _order(path: Path) -> tuple[int, str]:
    digits = re.search(r"step-(\d+)", path.name)
    return (int(digits[1][:18]) if digits else 0, path.name)


def _entry(path: Path, settings: dict[str, Any]) -> Entry:
    entry = Entry(path, sum(file.stat().st_size for file in files_of(path)), len(shards_of(path)))
    if not is_checkpoint(path):
        entry.marks.append("half-written" if path.suffix == ".tmp" else "half-removed")
        return entry
    try:
        state = read_state(path)
    except UserError as error:
        entry.marks.append(str(error).removeprefix(f"{path}: "))
        return entry
    entry.step, entry.position = (_whole(state.get(key)) for key in ("step", "position"))
    window_tokens = window_tokens_in(settings)
    if entry.position is not None and window_tokens is not None:
        entry.tokens = entry.position * window_tokens
    entry.version = state["sslm"] if isinstance(state.get("sslm"), str) else None
    entry.metric = _metric(state.get("metrics"), _best(settings)[0])
    if path.suffix == ".corrupt":
        entry.marks.append("corrupt, set aside")
    elif damage := damage_of(path, hashed=False):
        entry.marks.append(damage)
    return entry


def _metric(metrics: Any, best: str) -> tuple[str, float] | None:
    """The metric that tells the best, or else the first."""
    if not isinstance(metrics, dict):
        return None
    numbers = {name: float(v) for name, v in metrics.items() if type(v) is float or (type(v) is int and abs(v) < MOST)}
    name = best if best in numbers else next(iter(numbers), None)
    return None if name is None else (name, numbers[name])


def _mark(entries: list[Entry], folder: Path, settings: dict[str, Any]) -> None:
    """Say which is the latest, and the best of those that are sound."""
    metric, highest = _best(settings)
    measured = [(e.metric[1], e) for e in entries if not e.marks and e.metric and e.metric[0] == metric]
    measured = [(value, entry) for value, entry in measured if not math.isnan(value)]
    latest = latest_in(folder)
    for entry in entries:
        if entry.path.name == latest:
            entry.marks.insert(0, "latest")
    if measured:
        best = (max if highest else min)(measured, key=lambda one: one[0])[1]
        best.marks.insert(0, "best")


def _settings(config: Path) -> dict[str, Any]:
    """The run's settings, as far as they can be read."""
    try:
        settings = load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _best(settings: dict[str, Any]) -> tuple[str, bool]:
    """The metric that tells the best of the run's checkpoints, and whether its highest value does."""
    chosen = settings.get("checkpoint")
    chosen = chosen if isinstance(chosen, dict) else {}
    return str(chosen.get("best_metric", "val/loss")), chosen.get("best_is") == "highest"


def _whole(number: Any) -> int | None:
    return number if type(number) is int and 0 <= number < MOST else None
