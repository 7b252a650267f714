"""sslm finetune --seeds: runs one after the other, what they score together, and how they end."""

import json
import os
import sys
from pathlib import Path

import pytest

from sslm.__main__ import main as sslm
from sslm.cli import seeds
from sslm.cli.parse import parse
from sslm.config import CheckpointConfig
from sslm.system.errors import UserError

BEST = CheckpointConfig(export="best", best_metric="val/f1", best_is="highest")
ASKED = ["--objective", "classification"]


def rows(*f1: float) -> list[dict[str, float]]:
    return [{"step": 10 * n, "tokens": 0, "val/loss": 1.0 - n, "val/f1": value} for n, value in enumerate(f1)]


def test_scores_are_those_of_the_exported_models() -> None:
    runs = {1: rows(0.9, 0.5, 0.25), 7: rows(0.9, 0.25, 0.75)}  # what was measured before the first step has no model
    assert seeds.scores(runs, BEST) == {
        "val/loss": {"1": 0.0, "7": -1.0, "mean": -0.5, "deviation": pytest.approx(0.5**0.5)},
        "val/f1": {"1": 0.5, "7": 0.75, "mean": 0.625, "deviation": pytest.approx(0.03125**0.5)},
    }
    assert seeds.scores(runs, CheckpointConfig())["val/f1"]["1"] == 0.25
    assert seeds.scores({1: rows(0.1, float("nan")), 2: rows(0.1, 0.2)}, CheckpointConfig())["val/f1"]["mean"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--seeds", "1"], "--seeds 1: expected at least two whole numbers, as in --seeds 1,2,3"),
        (["--seeds", "1,1"], "--seeds 1,1: expected at least two"),
        (["--seeds=1,x"], "--seeds 1,x: expected at least two"),
        (["--seeds"], "expected at least two"),
        (["--seeds", "1,2", "--seed", "3"], "--seed and --seeds: both are given"),
        (["--seeds", "1,2", "--num_nodes", "2"], "not torchrun, srun or several nodes"),
        (["--seeds", "1,2", "--optim.lr", "x"], "--optim.lr x"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sslm(["finetune", *ASKED, *given]) == 2
    assert said in capsys.readouterr().err


def test_a_runs_folder_is_not_for_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="is a run itself"):
        seeds.check(parse([*ASKED, "--run_dir", str(tmp_path)]), [])


def test_each_run_has_its_seed_its_folder_and_what_is_left_of_the_time() -> None:
    asked = [*ASKED, "--run_dir", "there", "--checkpoint.upload", "s3://bucket/there/", "--stop_after", "9h"]
    command = seeds.command_for(3, asked, parse(asked))
    config = parse(command[3:])
    assert command[:3] == [sys.executable, "-m", "sslm.train"]
    assert (config.seed, config.run_dir, config.checkpoint.upload) == (3, "there/seed-3", "s3://bucket/there/seed-3")
    assert config.stop_after is not None
    assert 8 * 3600 < int(config.stop_after[:-1]) < 9 * 3600


@pytest.mark.parametrize(("act", "code"), [("raise SystemExit(75)", 75), ("os.kill(os.getpid(), 9)", 137)])
def test_a_runs_exit_code_is_kept(act: str, code: int) -> None:
    assert seeds.trained([sys.executable, "-S", "-c", f"import os; {act}"]) == code


def test_a_signal_is_passed_on() -> None:
    act = (
        "import os, signal, time; signal.signal(15, lambda *_: os._exit(75)); os.kill(os.getppid(), 15); time.sleep(9)"
    )
    assert seeds.trained([sys.executable, "-S", "-c", act]) == 75


@pytest.mark.slow
def test_what_is_done_stays_and_the_table_comes_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = ({"text": f"{word} here", "label": word} for word in ("red", "green") * 20)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "runs"
    small = "--data.tokenizer bpe:300 --seq_len 8 --batch_size 8 --max_steps 4 --model.hidden_size 8 --accelerator cpu"
    asked = ["finetune", *ASKED, *small.split(), "--data.train", f"{tmp_path}/rows.jsonl", "--run_dir", str(run)]
    assert sslm([*asked, "--seeds", "1,2", "--stop_after", "2steps"]) == 75
    assert sorted(os.listdir(run)) == ["seed-1"]
    assert sslm([*asked, "--seeds", "1,2"]) == 0
    found = json.loads((run / "seeds.json").read_text())
    assert found["seeds"] == [1, 2]
    assert set(found["scores"]["val/accuracy"]) == {"1", "2", "mean", "deviation"}
    assert "mean ± deviation" in capfd.readouterr().out
