"""The benchmark of steps times trainers that do the same, and refuses to time others."""

import importlib
import json
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest

from tests.support.processes import run_command

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imported as its script sees its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["causal_lm-8x8", "causal_lm-8x8-ddp"])
def test_the_benchmark_times_sslm_beside_the_others(case: str, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("\n".join(topics[name] for name in sorted(topics)))
    script = [str(BENCHMARKS / "step.py"), "--text", str(text), "--out", str(out)]
    others = ["--contestants", "sslm,hugging_face,lightning_defaults"]
    finished = run_command([*script, "--only", case, "--rounds", "2", *others], timeout=300)
    assert finished.returncode == 0, finished.stderr
    turns = json.loads(out.read_text())["cases"][case]
    assert {"bare", "sslm"} <= set(turns)
    assert all(len(told[clock]) == 2 and min(told[clock]) > 0 for told in turns.values() for clock in ("cpu", "wall"))
    assert "same losses at 7 steps, 20 to 140" in finished.stderr
    assert f"| {case}, ms a step |" in finished.stdout


def test_trainers_that_do_not_do_the_same_are_not_timed(benchmark: ModuleType) -> None:
    benchmark.check_losses({"bare": {1: 5.0, 2: 4.0}, "sslm": {2: 4.00001}})
    with pytest.raises(SystemExit, match="step 2: the losses are not the same"):
        benchmark.check_losses({"bare": {1: 5.0, 2: 4.0}, "sslm": {2: 4.001}})
    with pytest.raises(SystemExit, match="no step's loss is known of all"):
        benchmark.check_losses({"bare": {1: 5.0}, "sslm": {2: 4.0}})


def test_a_step_is_told_by_its_turns_medians_beside_the_bare_loops(benchmark: ModuleType) -> None:
    clock = {"bare": [0.001, 0.003, 0.002], "sslm": [0.002, 0.004, 0.003]}
    table = benchmark.table("causal_lm-8x8", {name: {"cpu": told, "wall": told} for name, told in clock.items()})
    assert "| bare loop | 2.00 ± 1.00 |  |  | 2.00 ± 1.00 |  |  |" in table
    assert "| **sslm** | 3.00 ± 1.00 | +1.00 | 1.500 | 3.00 ± 1.00 | +1.00 | 1.500 |" in table


def test_contestants_train_what_they_can(benchmark: ModuleType) -> None:
    names = list(benchmark.CONTESTANTS)
    assert benchmark.competing(names, "causal_lm-8x8") == names
    assert "litgpt" not in benchmark.competing(names, "masked_lm-8x8")
    assert tuple(benchmark.competing(names, "causal_lm-8x8-ddp")) == benchmark.UNDER_DDP
