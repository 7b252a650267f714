"""sslm train, as it is typed."""

import runpy
import sys
from pathlib import Path
from typing import Any

from trainers import FOREVER


def train(task: dict[str, Any], turns: Any) -> None:
    settings = {
        "run_dir": Path(task["folder"]) / "run",
        "max_steps": FOREVER,
        "val_every": FOREVER,
        "checkpoint.every_steps": FOREVER,
        "log_every": task["log_every"],
        "devices": task["processes"],
    }
    sys.argv[1:] = [*task["arguments"], *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
    turns.take()
    runpy.run_module("sslm.train", run_name="__main__", alter_sys=True)
