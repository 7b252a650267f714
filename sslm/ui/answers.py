"""What the page asks for, made of run folders. Nothing here writes, and no path comes from a request."""

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any

from sslm.runs.comparison import find_runs, marks_of, runs_below
from sslm.runs.folder import RunFolder, parse_row, settings_in
from sslm.system.errors import UserError, without_secrets

Answer = dict[str, Any]
MOST_BYTES = 1 << 20
"""How much of metrics.jsonl one answer has."""
TAIL_BYTES = 1 << 12
"""How much before a place in metrics.jsonl tells it from the same place after the run went back."""


class Shown:
    """The runs of some folders, by number; those that begin later get the next numbers.

    Args:
        folders: run folders, or folders of runs.

    Raises:
        UserError: there is no run yet.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders, self._lock = folders, threading.Lock()
        self._runs = find_runs(folders)
        around = [
            folder.parent if (folder / "metrics.jsonl").is_file() else folder for folder in map(Path.resolve, folders)
        ]
        self._base = os.path.commonpath(around)

    def runs(self) -> list[RunFolder]:
        """Return all runs that there are by now."""
        with self._lock:
            known = {run.path.resolve() for run in self._runs}
            there = [run for folder in self._folders for run in runs_below(folder)]
            self._runs += {run.path.resolve(): run for run in there if run.path.resolve() not in known}.values()
            return list(self._runs)

    def run(self, number: str) -> RunFolder | None:
        """Return the run of a number as a request has it, or None if there is none."""
        with self._lock:
            is_number = re.fullmatch("[0-9]{1,6}", number) is not None
            return self._runs[int(number)] if is_number and int(number) < len(self._runs) else None

    def overview(self) -> Answer:
        """Name all runs, and say how each is getting on; `version` changes whenever its rows do."""
        return {"runs": [self._about(run) for run in self.runs()]}

    def _about(self, run: RunFolder) -> Answer:
        try:
            metrics = run.metrics.stat()
            version, age = f"{metrics.st_mtime_ns}-{metrics.st_size}", max(time.time() - metrics.st_mtime, 0.0)
        except OSError:  # removed since
            version, age = "", None
        name = os.path.relpath(run.path.resolve(), self._base)
        return {"name": name, "version": version, "seconds_since_row": age, "status": _status(run)}


def _status(run: RunFolder) -> Answer:
    try:
        status = json.loads(run.status.read_bytes()) if run.status.is_file() else None  # a pipe would never end
    except (OSError, ValueError, RecursionError):
        status = None
    return {key: status.get(key) for key in ("state", "step", "reason")} if isinstance(status, dict) else {}


def settings(run: RunFolder) -> dict[str, str]:
    """Return a run's settings by their flags' names, {} if config.yaml is missing or damaged."""
    if not run.config.is_file():
        return {}
    try:
        tree = settings_in(str(run.path), run.config.read_bytes())
    except (UserError, OSError):
        return {}
    return _flat(tree)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found[f"{prefix}{key}"] = "" if value is None else without_secrets(text)
    return found


def rows_since(run: RunFolder, mark: str) -> Answer:
    """Return the rows after a mark, and the mark after them; all rows if the file is another since (the run went back).

    A last line without its end is left for later. Numbers that JSON lacks are null.

    Args:
        mark: the `mark` of the answer before, or "" for all rows.

    Returns:
        `rows`; `mark`; `is_new`: whether the rows replace those of before; `more`: whether to ask again at once;
        `anomalies`: all of the run's.
    """
    rows: list[Answer] = []
    start, after, more = 0, "", False
    if run.metrics.is_file():  # no pipe, which would never end
        with open(run.metrics, "rb") as stream:
            start = _known(stream, mark)
            stream.seek(start)
            content = stream.read(MOST_BYTES)
            more = len(content) == MOST_BYTES
            content += stream.readline() if more else b""
            whole = content.rfind(b"\n") + 1
            lines = content[:whole].decode("utf-8", errors="replace").split("\n")
            rows = [_shown(row) for line in lines if (row := parse_row(line))]
            after = _mark(stream, start + whole)
    anomalies = [asdict(anomaly) for anomaly in marks_of(run)]
    return {"rows": rows, "mark": after, "is_new": start == 0, "more": more, "anomalies": anomalies}


def _known(stream: BufferedReader, mark: str) -> int:
    """Up to which byte a mark says that this very file is known."""
    told = re.fullmatch("([0-9]{1,18})-[0-9a-f]{64}", mark)
    return int(told[1]) if told and _mark(stream, int(told[1])) == mark else 0


def _mark(stream: BufferedReader, end: int) -> str:
    """Tell a place in a file by the bytes before it: speeds are among them, and no two courses of a run share those."""
    stream.seek(max(end - TAIL_BYTES, 0))
    return f"{end}-{hashlib.sha256(stream.read(min(end, TAIL_BYTES))).hexdigest()}"


def _shown(row: Answer) -> Answer:
    """A row without what no page shows, in numbers that JSON has."""
    return {key: _finite(value) for key, value in row.items() if key != "batch_digest"}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
