"""Chaos: killed at any moment, the same command goes on and ends where an uninterrupted run would have."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.processes import kill_group, run_command, start_command
from tests.test_train import losses_of, val_of

CHAOS = [
    "--model.attention_dropout",
    "0.1",
    "--max_steps",
    "40",
    "--val_every",
    "10",
    "--checkpoint.every_steps",
    "3",
]


def command(tiny: list[str], run: Path, *flags: str) -> list[str]:
    return ["-m", "sslm.train", *tiny, "--run_dir", str(run), *CHAOS, *flags]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("straight") / "run"
    done = run_command(command(tiny, run))
    assert done.returncode == 0, done.stderr
    return run


def wait_for_rows(run: Path, number: int, process: "object", seconds: float = 60) -> None:
    """Until metrics.jsonl has that many rows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:  # type: ignore[attr-defined]
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.005)


def kill_and_resume(tiny: list[str], run: Path, kills: int, chance: random.Random, *flags: str) -> None:
    for _ in range(kills):
        rows = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").is_file() else 0
        process = start_command(command(tiny, run, *flags))
        wait_for_rows(run, rows + chance.randint(0, 6), process)
        time.sleep(chance.random() * 0.1)
        kill_group(process)
        process.communicate()
    done = run_command(command(tiny, run, *flags), timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(straight: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    kill_and_resume(tiny, run, 2, random.Random(0))
    assert losses_of(run) == losses_of(straight)
    assert val_of(run) == val_of(straight)
    assert (run / "export/model.safetensors").read_bytes() == (straight / "export/model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(tiny: list[str], tmp_path: Path) -> None:
    longer = ["--max_steps", "300", "--val_every", "50"]
    done = run_command(command(tiny, tmp_path / "straight", *longer))
    assert done.returncode == 0, done.stderr
    kill_and_resume(tiny, tmp_path / "run", 20, random.Random(1), *longer)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight")
    weights = [(tmp_path / run / "export/model.safetensors").read_bytes() for run in ("run", "straight")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_and_resumed(strategy: str, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--strategy", strategy, "--devices", "2"]
    done = run_command(command(tiny, tmp_path / "straight", *flags), timeout=200)
    assert done.returncode == 0, done.stderr
    kill_and_resume(tiny, tmp_path / "run", 4, random.Random(2), *flags)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight")


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


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_signal_saves_and_stops_with_code_75(
    number: signal.Signals, straight: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_command(command(tiny, run))
    wait_for_rows(run, 4, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert not err
    assert "Run the same command to go on" in out
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, number.name)
    assert (run / f"checkpoints/step-{status['step']:06d}").is_dir()
    if number is signal.SIGTERM:
        assert run_command(command(tiny, run)).returncode == 0
        assert losses_of(run) == losses_of(straight)


@pytest.mark.slow
def test_signal_to_the_second_process_stops_both_at_the_same_step(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_command(command(tiny, run, "--devices", "2", "--max_steps", "100000"))
    wait_for_rows(run, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    import os

    os.kill(int(children[-1]), signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
