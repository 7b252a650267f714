"""A profile's shares are those of its trace, and the run is as without it."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, Kernel

from sslm.train import main
from sslm.training.profile_report import BETWEEN, STEP, Interval, in_words, length, shares, union
from tests.support.processes import Ranks
from tests.support.runs import TrainTiny, losses_of


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run that profiled three of its steps, between which it validated and saved."""
    run = tmp_path_factory.mktemp("profiled") / "run"
    assert main([*tiny, "--run_dir", str(run), "--profile", "3:5"]) == 0
    return run


def trace_of(run: Path) -> list[dict[str, Any]]:
    with gzip.open(run / "profile/trace.json.gz", "rt") as stream:
        return [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]


def report_of(run: Path) -> dict[str, int]:
    """Kind -> percent."""
    found = re.findall(r"^  (\S.*?) +(\d+)%", (run / "profile/report.txt").read_text(), re.MULTILINE)
    return {name: int(percent) for name, percent in found}


def test_shares_are_those_of_the_trace(tiny: list[str], tmp_path: Path) -> None:
    """Of three runs one is enough: who takes the processor away in mid-operation moves the time to another name."""
    for n in range(3):
        run = tmp_path / f"run{n}"
        assert main([*tiny, "--run_dir", str(run), "--profile", "3:5"]) == 0
        if all(abs(told - read) <= limit for told, read, limit in told_and_read(run)):
            return
    pytest.fail(f"told, read from the trace, and how far apart they may be: {told_and_read(run)}")


def told_and_read(run: Path) -> list[tuple[float, float, float]]:
    """Read percents by hand, of leaves of the thread that trains, and of marks around steps."""
    trace, told = trace_of(run), report_of(run)
    steps = [event for event in trace if event["name"] == STEP]
    total = sum(event["dur"] for event in trace if event["name"] in (STEP, BETWEEN))
    assert len(steps) == 3
    inside = [e for e in trace if any(0 <= e["ts"] - step["ts"] < step["dur"] for step in steps)]

    def percent(names: str) -> float:
        found = [event for event in inside if re.fullmatch(names, event["name"])]
        return 100 * length(union(Interval(event["ts"], event["ts"] + event["dur"]) for event in found)) / total

    beside = 100 * (total - sum(event["dur"] for event in steps)) / total
    return [
        (told["matmuls"], percent(r"aten::(mm|addmm_?|bmm|linear|matmul)"), 1),
        (told["attention"], percent(r"aten::_scaled_dot_product_flash_attention_for_cpu\w*"), 1.5),
        (told["waiting for data"] + told["rows, validation, saving"], beside, 1.5),
        (sum(told.values()), 100, len(told) / 2),
    ]


def test_a_profiled_run_is_as_without(profiled: Path, train_tiny: TrainTiny, tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run") == 0
    assert not (tmp_path / "run/profile").exists()
    assert losses_of(profiled) == losses_of(tmp_path / "run")


def test_steps_of_a_run_that_stops_and_goes_on_are_profiled_in_both(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--profile", "2:5", "--stop_after", "3steps") == 75
    assert sum(event["name"] == STEP for event in trace_of(run)) == 2
    assert train_tiny(run, "--profile", "2:5") == 0
    assert sum(event["name"] == STEP for event in trace_of(run)) == 2
    assert (run / "profile/report.txt").read_text().startswith("Steps 4 to 5: ")
    assert train_tiny(run, "--profile", "2:5", "--max_steps", "9") == 0
    assert "--profile 2:5: the run goes on from step 8, so nothing is profiled" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["13:10", "a:b", "0:0", "0:3", "1:101", "10", "-1:3", "1:2:3", "١:٢", "1e3:2e3"])
def test_other_values_are_refused(wrong: str, train_tiny: TrainTiny, tmp_path: Path, capsys: Any) -> None:
    assert train_tiny(tmp_path / "run", f"--profile={wrong}") == 2
    assert (
        "expected the first and the last of at most 100 steps, counted from 1, such as 10:13" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_steps_past_the_end_are_refused(train_tiny: TrainTiny, tmp_path: Path, capsys: Any) -> None:
    assert train_tiny(tmp_path / "run", "--profile", "7:9") == 2
    assert "--profile 7:9: the run ends with step 8; give steps up to that" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_several_ranks_the_first_is_profiled(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    several = ["--devices", "2", "--strategy", "ddp", "--profile", "3:4"]
    assert Ranks([*tiny, "--run_dir", str(run), *several], tmp_path / "log").wait(120) == [0, 0]
    assert sorted(path.name for path in (run / "profile").iterdir()) == ["report.txt", "trace.json.gz"]
    sent = [event for event in trace_of(run) if event["name"] == "gloo:all_reduce"]
    assert sent
    told = (run / "profile/report.txt").read_text()
    assert "communication" in told
    assert "DistributedDataParallel" not in told  # a mark around all that it calls
    assert "Steps 3 to 4" in (tmp_path / "log.0").read_text()
    assert "Steps" not in (tmp_path / "log.1").read_text()


def event(name: str, start: float, end: float, kernel: tuple[float, float] | None = None) -> list[FunctionEvent]:
    """An operation of the thread that trains, and its kernel."""
    common = {"thread": 1, "use_device": "cuda"}
    asked = FunctionEvent(id=1, name=name, start_us=start, end_us=end, device_type=DeviceType.CPU, **common)
    if kernel is None:
        return [asked]
    asked.append_kernel(f"{name}_kernel", 0, int(kernel[1] - kernel[0]))
    assert isinstance(asked.kernels[0], Kernel)
    on_device = f"{name}_kernel"
    return [asked, FunctionEvent(2, on_device, 7, *kernel, device_type=DeviceType.CUDA, use_device="cuda")]


def test_of_a_gpu_kernels_count_and_messages_behind_them_are_free() -> None:
    """100 µs: 40 of a matmul, in 10 of which others are sent something, as in 20 after it; then nothing."""
    events = [
        *event(STEP, 0, 80),
        *event(BETWEEN, 80, 100),
        *event("aten::mm", 0, 5, kernel=(10, 50)),
        *event("nccl:all_reduce", 5, 8, kernel=(40, 70)),
    ]
    found = shares(events, waited=15e-6)
    assert found.parts == pytest.approx(
        {
            "matmuls": 0.4,
            "communication": 0.2,
            "host, between operations": 0.2,
            "waiting for data": 0.15,
            "rows, validation, saving": 0.05,
        }
    )
    assert found.hidden == pytest.approx(0.1)
    said = in_words(found, range(3, 4), "800 TFLOP/s")
    assert "Waiting for data takes 15%: --data.num_workers 2" in said
    assert "Communication takes 20%: larger micro-batches" in said
