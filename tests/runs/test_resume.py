"""Signals and kills under the launcher that starts local ranks, from the command line (test_chaos.py has the rest)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import Ranks, start_command, train_forked
from tests.support.runs import losses_of, wait_for_rows

CHAOS = ["--model.attention_dropout", "0.1", "--max_steps", "40", "--val_every", "10", "--checkpoint.every_steps", "3"]


def command(tiny: list[str], run: Path, *flags: str) -> list[str]:
    return ["-m", "sslm.train", *tiny, "--run_dir", str(run), *CHAOS, *flags]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("straight") / "run"
    done = train_forked(command(tiny, run)[2:], run.with_name("log"))
    assert done.returncode == 0, done.stdout
    return run


@pytest.mark.slow
def test_killing_only_the_first_process_leaves_no_other(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_command(command(tiny, run, "--devices", "2", "--max_steps", "100000"))
    wait_for_rows(run, 3, process)
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


def test_a_child_whose_parent_has_ended_already_ends_at_once(tiny: list[str], tmp_path: Path) -> None:
    orphan = os.environ | {"LOCAL_RANK": "1", "SSLM_PARENT_PID": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    assert os.getpid() != 1
    process = subprocess.run([sys.executable, *command(tiny, tmp_path / "run")], env=orphan, timeout=60, check=False)
    assert process.returncode == 1
    assert not (tmp_path / "run").exists()


def test_row_that_met_a_full_disk_comes_again(straight: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "full").symlink_to("/dev/full")
    process = Ranks(command(tiny, run)[2:], tmp_path / "log")
    wait_for_rows(run, 6, process)
    os.replace(run / "metrics.jsonl", tmp_path / "rows")
    os.replace(tmp_path / "full", run / "metrics.jsonl")
    assert process.wait(60) == [2]
    assert "the disk is full" in process.said()
    assert "Saved at step" not in process.said()
    os.replace(tmp_path / "rows", run / "metrics.jsonl")
    assert train_forked(command(tiny, run)[2:], tmp_path / "log").returncode == 0
    assert losses_of(run) == losses_of(straight)


def test_signal_saves_and_stops_with_code_75(straight: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_command(command(tiny, run))
    wait_for_rows(run, 4, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert not err
    assert "Run the same command to resume" in out
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, "SIGTERM")
    assert (run / f"checkpoints/step-{status['step']:06d}").is_dir()
    assert train_forked(command(tiny, run)[2:], tmp_path / "log").returncode == 0
    assert losses_of(run) == losses_of(straight)


@pytest.mark.slow
def test_signal_to_the_second_process_stops_both_at_the_same_step(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_command(command(tiny, run, "--devices", "2", "--max_steps", "100000"))
    wait_for_rows(run, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
