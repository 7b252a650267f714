"""The benchmarks for GPUs run whole on a fake one, so that minutes on a real one are not lost to a slip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakegpu import environment

pytestmark = pytest.mark.slow


def test_every_part_of_the_gpu_benchmark_ends_well(fake_environment: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    script = environment.CHECKOUT / "benchmarks/gpu.py"
    done = subprocess.run(
        [fake_environment / "bin/python", script, "--tiny", "--minutes", "20", "--patience", "5", "--out", out],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**environment.variables(fake_environment), "FAKE_OPS": "1", "TMPDIR": str(tmp_path)},
    )
    *parts, summary = map(json.loads, out.read_text().splitlines())
    assert [part for part in parts if part["status"] != "ok"] == [], done.stderr
    assert summary == {"part": "summary"} | {part["part"]: "ok" for part in parts}
    assert len(parts) >= 12
    assert done.returncode == 0


def test_what_a_machine_lacks_and_what_takes_too_long_is_told_in_a_line(fake_environment: Path, tmp_path: Path) -> None:
    script = environment.CHECKOUT / "benchmarks/gpu.py"
    command = [fake_environment / "bin/python", script, "--tiny"]
    variables = {**environment.variables(fake_environment), "FAKE_OPS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**variables, "FAKE_GPUS": "0"}, check=False
    )
    assert done.returncode == 2
    assert "no GPU that torch can use" in done.stderr
    short = ["--only", "parity,resume", "--patience", "0.01"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, timeout=100, env=variables, check=False)
    assert [json.loads(line).get("status") for line in done.stdout.splitlines()] == ["late", "late", None]
    assert done.returncode == 1


def test_the_table_of_plans_beside_peaks_has_a_mixture_within_8_percent(fake_environment: Path, tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, environment.CHECKOUT / "benchmarks/memory.py", "--fake", "--only", "jetmoe"]
    done = subprocess.run(
        [*command, "--uncompiled", "--out", out],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "SSLM_FAKEGPU_VENV": str(fake_environment), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["cases"]["jetmoe"].keys() == {"32", "bf16-mixed"}
    assert done.stdout.count("%)") == 2
