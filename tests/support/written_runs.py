"""Run folders written by hand, whose rows are what a test needs them to be."""

import json
from pathlib import Path
from typing import Any


def write_run(folder: Path, steps: int = 4, flops_per_token: float | None = None, **values: Any) -> Path:
    """A run's rows, 100 tokens a step, at 100 and then at 50 tokens per second."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "val/loss": 5.0}]
    for step in range(1, steps + 1):
        flops = {} if flops_per_token is None else {"flops": flops_per_token * 100 * step}
        rows.append(row_of(step) | flops | values)
    append_rows(folder, *rows, {"step": steps, "tokens": 100 * steps, "val/loss": 2.0})
    return folder


def row_of(step: int) -> dict[str, Any]:
    speed = 100.0 if step <= 2 else 50.0
    return {"step": step, "tokens": 100 * step, "train/loss": 5.0 / step, "lr": 0.1, "tokens_per_second": speed}


def append_rows(folder: Path, *rows: dict[str, Any], name: str = "metrics.jsonl") -> None:
    with open(folder / name, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
