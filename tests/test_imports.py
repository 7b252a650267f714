"""Arrows between rooms point one way."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "sslm"
LEAVES = {
    "sslm",
    "sslm.config",
    "sslm.errors",
    "sslm.files",
    "sslm.gather",
    "sslm.heartbeats",
    "sslm.signals",
    "sslm.terminal",
}
ALLOWED = {
    "data": {"data"},
    "models": {"models"},
    "optim": set(),
    "flops": set(),
    "plots": set(),
    "runs": set(),
    "anomalies": set(),
    "average": {"optim"},
    "checkpoints": {"checkpoints", "data", "models"},
    "commandline": set(),
    "clusters": set(),
    "machines": {"flops", "models"},
    "memory": {"machines", "models", "strategies"},
    "needs": {"data", "launch", "machines", "memory", "models", "strategies"},
    "speed": {"flops", "needs", "strategies"},
    "plan": {
        "checkpoints",
        "data",
        "flops",
        "launch",
        "machines",
        "needs",
        "runs",
        "speed",
        "strategies",
        "choices",
        "commandline",
    },
    "launch": {"strategies", "clusters", "models"},
    "strategies": {"models", "zero"},
    "zero": {"checkpoints", "models", "optim", "strategies"},
    "loggers": {"runs"},
    "objectives": {"objectives", "anomalies", "average", "data", "models", "optim"},
    "callbacks": {
        "callbacks",
        "anomalies",
        "objectives",
        "optim",
        "data",
        "models",
        "checkpoints",
        "runs",
        "flops",
        "plots",
    },
    "ckpt": {"ckpt", "checkpoints", "runs"},
    "prepare": {"data"},
    "export": {"checkpoints", "models", "runs"},
    "choices": {
        "callbacks",
        "checkpoints",
        "commandline",
        "data",
        "export",
        "launch",
        "machines",
        "models",
        "needs",
        "objectives",
        "runs",
        "strategies",
    },
    "report": {"data", "export", "models", "runs", "strategies"},
    "verify_resume": {"checkpoints", "choices", "ckpt", "commandline", "launch", "runs", "verify_resume"},
    "train": {
        "choices",
        "report",
        "objectives",
        "callbacks",
        "launch",
        "clusters",
        "machines",
        "needs",
        "plan",
        "strategies",
        "data",
        "models",
        "runs",
        "checkpoints",
        "commandline",
        "export",
        "loggers",
    },
}
"""What each room may import beside the leaves (settings, errors, files, the terminal)."""


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module == "sslm" else node.module for alias in node.names}
    return {name for name in found if name == "sslm" or name.startswith("sslm.")}


def test_each_room_imports_only_what_lies_below_it() -> None:
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if f"sslm.{room}" in LEAVES or room in ("__init__", "__main__"):
            continue
        for name in imports_of(file) - LEAVES:
            assert name.split(".")[1] in ALLOWED[room], f"{file.relative_to(ROOT)} imports {name}"


def test_leaves_import_no_room() -> None:
    for leaf in ("errors", "config", "files", "terminal"):
        assert imports_of(ROOT / f"{leaf}.py") <= LEAVES
