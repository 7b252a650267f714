"""`--eval_every`, `--eval_tasks`, `--eval_data`: the model is measured while it trains, and the run is as without."""

import json
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from sslm.cli.evaluate import main as evaluate
from sslm.train import main as train
from tests.support.processes import Ranks
from tests.support.runs import TrainTiny, losses_of, rows_of
from tests.support.tasks import write_tasks

DROPOUT = ["--model.attention_dropout", "0.2", "--checkpoint.every_steps", "3"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A short text, and a long one of many documents."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "short.txt").write_text("the cat sat on a mat\n-----\na dog did not")
    (folder / "long.txt").write_text(text.read_text()[:25_000])
    return folder


def measured(run: Path) -> dict[int, dict[str, float]]:
    """Step -> figures; a step that has two rows fails."""
    rows = [row for row in rows_of(run) if any(key.startswith("eval/") for key in row)]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: {key: row[key] for key in row if key.startswith("eval/")} for row in rows}


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_figures_are_those_of_the_steps_checkpoint_and_the_run_is_as_without(
    train_tiny: TrainTiny, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an average of the weights, a padded vocabulary, and dropout; by a task, too, if the harness is here."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    flags = [*DROPOUT, "--optim.average_decay", "0.9", "--max_steps", "5"]
    asked = [f"{texts}/short.txt,long={texts}/long.txt"]
    tasks = [str(write_tasks(tmp_path / "tasks") / "sitting.yaml")] if find_spec("lm_eval") else []
    evaluations = ["--eval_every", "3", "--eval_data", *asked, "--eval_limit", "7", "--logger", "csv"]
    more = ["--eval_tasks", *tasks, "--eval_num_fewshot", "1"] if tasks else []
    assert train_tiny(tmp_path / "plain", *flags) == 0
    assert train_tiny(tmp_path / "run", *flags, *evaluations, *more) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "plain")
    found = measured(tmp_path / "run")
    assert list(found) == [3, 5]
    assert "eval/short/bits_per_byte_stderr" in (tmp_path / "run/csv/metrics.csv").read_text()
    data = ["--data", asked[0].split(",")[0], "--data", asked[0].split(",")[1], "--limit", "7"]
    data += ["--document_separator", "\n-----\n", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    data += ["--tasks", *tasks, "--num_fewshot", "1"] if tasks else []
    assert evaluate([str(tmp_path / "run/checkpoints/step-000003"), *data]) == 0
    (model,) = json.loads((tmp_path / "out.json").read_text())["models"]
    for scores in model["scores"]:
        for name, figure in scores["figures"].items():
            assert found[3][f"eval/{scores['data']}/{name}"] == figure["value"]
            assert found[3].get(f"eval/{scores['data']}/{name}_stderr") == figure["stderr"]
    assert len(model["scores"]) == 2 + len(tasks)


def wait_for_journal(run: Path, ranks: Ranks, after: int = 0) -> None:
    """Wait until a part of an evaluation is done, and `after` was evaluated."""
    end = time.monotonic() + 60
    while ranks.is_alive():
        assert time.monotonic() < end
        journal = run / ".evaluation.journal"
        if journal.is_file() and journal.stat().st_size and (not after or after in measured(run)):
            return
        time.sleep(0.002)


def test_on_several_devices_broken_off_by_a_signal_and_killed_each_step_is_measured_once(
    tiny: list[str], train_tiny: TrainTiny, texts: Path, tmp_path: Path
) -> None:
    flags = [*DROPOUT, "--max_steps", "6", "--val_every", "6", "--eval_every", "3"]
    flags += ["--eval_data", f"{texts}/short.txt,{texts}/long.txt"]
    run = tmp_path / "run"
    ddp = [*tiny, *flags, "--run_dir", str(run), "--devices", "2", "--strategy", "fsdp", "--micro_batch_size", "2"]
    first = Ranks(ddp, tmp_path / "log")
    wait_for_journal(run, first)
    first.signal(signal.SIGTERM, rank=0)
    assert first.wait()[0] == 75, first.said()
    assert json.loads((run / "status.json").read_text())["step"] == 3
    assert "evaluation broken off; it comes on resuming" in first.said()
    assert not measured(run)
    second = Ranks(ddp, tmp_path / "log")
    wait_for_journal(run, second, after=3)
    second.signal(signal.SIGKILL)
    second.wait()
    assert list(measured(run)) == [3]
    assert Ranks(ddp, tmp_path / "log").wait() == [0, 0]
    found = measured(run)
    assert list(found) == [3, 6]
    assert not (run / ".evaluation.journal").exists()
    assert train_tiny(tmp_path / "alone", *flags, "--micro_batch_size", "2") == 0
    assert losses_of(run) == pytest.approx(losses_of(tmp_path / "alone"), abs=1e-5)
    for step, figures in measured(tmp_path / "alone").items():
        assert figures["eval/long/loss"] == pytest.approx(found[step]["eval/long/loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--eval_every", "3"], "--eval_every 3: on what? give --eval_tasks or --eval_data"),
        (["--eval_tasks", "no/such.yaml"], "--eval_tasks no/such.yaml: there is no such file"),
        (["--eval_data", "no/such.txt"], "--eval_data no/such.txt: there is no such file"),
        (["--eval_data", "a=x.txt,a=y.txt"], "two are called a; give a text a name"),
        (["--eval_data", "x.txt", "--objective", "classification"], "classification predicts no tokens"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(
    tiny: list[str], flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train([*tiny, "--run_dir", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()
