"""Trackers have the rows of metrics.jsonl, each once, whatever was killed in between."""

import csv
import json
import re
import signal
import subprocess
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from transformers import LlamaConfig

from sslm import CausalLM, DataConfig, DataModule, Monitor
from sslm.cli import track
from sslm.cli.parse import parse
from sslm.config import Config
from sslm.config.written import to_tree
from sslm.runs.checkpoints.folder import newest_first, number_of
from sslm.runs.folder import RunFolder
from sslm.runs.trackers import Trackers, check_trackers, parse_trackers
from sslm.runs.trackers.about import git_state, known_about, write_about
from sslm.runs.trackers.feed import Feed
from sslm.runs.trackers.identity import id_of, known_id
from sslm.runs.trackers.tracker import unsent
from sslm.runs.trackers.wandb import Wandb
from sslm.runs.trackers.workspace import build_workspace
from sslm.system.errors import UserError
from tests.support.processes import Ranks, run_command, train_forked
from tests.support.runs import TrainTiny, rows_of, wait_for_rows


def rows_of_csv(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(stream)]


def as_text(row: dict[str, Any]) -> dict[str, str]:
    texts = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
        for key, value in row.items()
    }
    return {key: text for key, text in texts.items() if text != "None"}


def test_a_table_has_all_rows_of_a_resumed_run_each_once(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--logger", "csv", "--checkpoint.every_steps", "2"]
    assert train_tiny(run, *flags, "--stop_after", "2steps") == 75
    with open(run / "csv/metrics.csv", "a") as stream:
        stream.write("3,384,of a killed process\n4,5")
    assert train_tiny(run, *flags) == 0
    rows = rows_of(run)
    assert len(rows) == 11
    assert rows_of_csv(run / "csv/metrics.csv") == list(map(as_text, rows))


def test_tensorboard_has_all_rows_of_a_resumed_run_each_once(train_tiny: TrainTiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert train_tiny(run, "--logger", "tensorboard", "--stop_after", "2steps") == 75
    assert train_tiny(run, "--logger", "tensorboard") == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("train/loss", "val/loss", "tokens", "lr"):
        wanted = [(row["step"], row[name]) for row in rows_of(run) if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (step, pytest.approx(value)) for step, value in wanted
        ]


def hand_over(run: Path, tmp_path: Path, name: str, *flags: str, env: dict[str, str]) -> None:
    """Hand a run to a tracker afterwards."""
    done = train_forked([str(run), "--to", name, *flags], tmp_path / "track", 1, env=env, verb=track.main)
    assert done.returncode == 0, done.stdout


def check_wandb(run: Path, last_step: int, env: dict[str, str]) -> list[dict[str, Any]]:
    """Check that the one folder of W&B in a run has each step of metrics.jsonl once, and the run's settings.

    Returns:
        What the folder has.
    """
    [file] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    printed = run_command(["-m", "wandb", "leet", "inspect", "--json", str(file)], env=env).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps: dict[int, dict[str, Any]] = {}
    for row in rows_of(run):
        shown = {key: value for key, value in row.items() if value is not None and key != "samples"}
        steps.setdefault(row["step"], {}).update(shown)
    assert [item["_step"] for item in history] == list(steps) == list(range(last_step + 1))
    numbers = [{k: v for k, v in item.items() if not k.startswith(("_", "samples"))} for item in history]
    assert numbers == list(steps.values())
    assert [item["_step"] for item in history if item.get("samples.nrows")] == [
        row["step"] for row in rows_of(run) if row.get("samples")
    ]
    [made] = [record["run"] for record in records if record["type"] == "run"]
    assert (made["run_id"], made["display_name"]) == ((run / "wandb_id").read_text(), "run")
    assert "wandb" in made["config"]["update"]["logger"]
    assert made["config"]["update"]["model"]["hidden_size"] == 32
    assert made["config"]["update"]["about"] == json.loads((run / "about.json").read_text())
    return records


def test_wandb_has_each_step_once_offline_beside_a_table_without_asking(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": ""}
    flags = ["--run_dir", str(run), "--max_steps", "2", "--logger", "wandb,csv"]
    done = train_forked([*tiny, *flags], tmp_path / "log", env=env)
    assert done.returncode == 0, done.stdout
    check_wandb(run, 2, env)
    assert rows_of_csv(run / "csv/metrics.csv") == list(map(as_text, rows_of(run)))


def test_a_run_tells_its_versions_its_machine_and_its_text(tmp_path: Path) -> None:
    run, data = RunFolder(tmp_path), {"seed": 0, "sources": {"all": {"tokenizer": "f00d", "shards": {}}}}
    write_about(run, data, {}, "cpu", 2)
    about = known_about(run)
    assert about["versions"]["torch"] == version("torch")
    assert (about["hardware"]["device"], about["hardware"]["devices"]) == ("cpu", 2)
    assert about["data"]["all"]["tokenizer"] == "f00d"
    run.about.write_text("{")
    assert known_about(run) == {}


@pytest.mark.parametrize("text", [b"", b"*", b"a/../..", b"' or '", b"\xff\xfe", b"a\n", "é".encode(), b"a" * 65])
def test_a_damaged_id_is_none(text: bytes, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.wandb_id.write_bytes(text)
    assert known_id(run) is None
    made = id_of(run)
    assert run.wandb_id.read_text() == made == known_id(run)


def test_gits_state_is_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert re.fullmatch(r"[0-9a-f]{40}", state["commit"])
    assert state["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path) == state | {"dirty": True}


@pytest.mark.slow
def test_wandb_has_each_step_once_after_three_kills(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": ""}
    arguments = [*tiny, "--run_dir", str(run), "--logger", "wandb", "--optim.schedule", "constant"]
    before: set[Path] = set()
    for _ in range(3):
        ranks = Ranks([*arguments, "--max_steps", "100000"], tmp_path / "log", env=env)
        while not (begun := set((run / "wandb").glob("offline-run-*/run-*.wandb")) - before):
            assert ranks.is_alive(), ranks.said()
            time.sleep(0.01)
        wait_for_rows(run, len(rows_of(run)) + 12, ranks)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
        before |= begun
    end = number_of(newest_first(run / "checkpoints")[0]) + 6
    done = train_forked([*arguments, "--max_steps", str(end)], tmp_path / "second", env=env)
    assert done.returncode == 0, done.stdout
    assert "resuming at step" in done.stdout
    hand_over(run, tmp_path, "wandb", "--model", env=env)
    records = check_wandb(run, end, env)
    models = [record["artifact"] for record in records if record.get("artifact", {}).get("type") == "model"]
    assert len(models) == 1
    sent = {Path(file["local_path"]) for file in models[0]["manifest"]["contents"]}
    assert sent == set((run / "export").iterdir())


def test_a_tracker_gets_all_settings_without_secrets_and_writes_nothing_before_it_begins(tmp_path: Path) -> None:
    config = Config(run_dir=str(tmp_path), logger="wandb", data=DataConfig(train="https://me:geheim@host/x?sig=f00d"))
    [feed] = Trackers(parse_trackers(config.logger), RunFolder(tmp_path), to_tree(config)).feeds
    assert isinstance(feed.tracker, Wandb)
    assert feed.tracker.settings["data"]["train"] == "https://host/x"
    assert feed.tracker.settings.keys() == to_tree(config).keys()
    assert not list(tmp_path.iterdir())


class Kept:
    """A tracker that takes no row back, as a server; it may be made to fall over at a step."""

    takes_back = False

    def __init__(self, falls_over_at: int | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.falls_over_at = falls_over_at

    def begin(self, rows: list[dict[str, Any]]) -> None:
        self.rows += unsent(rows, [row["step"] for row in self.rows])

    def write(self, row: dict[str, Any]) -> None:
        if row["step"] == self.falls_over_at:
            raise OSError("no space left")
        self.rows.append(row)

    def close(self, failed: bool = False) -> None:
        pass


def test_rows_are_sent_once_a_checkpoint_is_past_them_and_what_did_not_hold_never_is() -> None:
    tracker = Kept()
    feed = Feed("kept", tracker, "later")
    first, second, other = {"step": 1}, {"step": 2, "lr": 0.1}, {"step": 2, "lr": 0.2}
    feed.begin([])
    feed.write(first)
    feed.hold(1)
    feed.write(second)
    feed.begin([first])  # the run goes back
    feed.write(other)
    feed.write({"step": 3})
    feed.hold(2)
    feed.end()
    feed.wait()
    assert tracker.rows == [first, other]


def test_a_tracker_that_raises_is_left_alone_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Kept(falls_over_at=2)
    feed = Feed("kept", tracker, "sslm track run --to kept")
    feed.begin([])
    for step in range(4):
        feed.write({"step": step})
        feed.hold(step)
    feed.end()
    feed.wait()
    assert [row["step"] for row in tracker.rows] == [0, 1]
    said = capsys.readouterr().out
    assert said.count("Warning") == 1
    assert "no space left; it is left alone. To send the rows later: sslm track run --to kept" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wandb,tensorbord", "there is no tensorbord (did you mean tensorboard?); expected one or several of csv"),
        ("none,csv", "none stands alone"),
    ],
)
def test_unknown_trackers_are_refused_with_the_nearest(given: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse(["--logger", given])
    assert parse_trackers("wandb, csv,wandb") == ["wandb", "csv"]


def test_loggers_of_anothers_trainer_have_loss_and_tokens_at_one_step(text: Path, cache: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = CausalLM(config)
    data = DataModule(
        DataConfig(train=str(text), document_separator="\n-----\n", tokenizer="bpe:512", cache_dir=str(cache)),
        model.recipe,
        seq_len=32,
        batch_size=4,
    )
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=logger,
        callbacks=[Monitor(tmp_path / "run", 2)],
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    first, second = [row for row in rows_of_csv(tmp_path / "metrics.csv") if "train/loss" in row]
    assert (float(first["tokens"]), float(second["tokens"])) == (128, 256)
    rows = rows_of(tmp_path / "run")
    assert [float(row["train/loss"]) for row in (first, second)] == [row["train/loss"] for row in rows]
    assert {"lr", "grad_norm", "tokens_per_second"} <= first.keys()


def test_a_finished_runs_rows_are_given_to_trackers_again_and_again(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "4") == 0
    for _ in range(2):
        assert track.main([str(run), "--to", "csv,tensorboard"]) == 0
        assert rows_of_csv(run / "csv/metrics.csv") == list(map(as_text, rows_of(run)))
        assert len(list((run / "tensorboard").iterdir())) == 1
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 5, "tokens": 640}\n')  # it comes again when the run goes on
    assert track.main([str(run), "--to", "csv"]) == 0
    assert len(rows_of_csv(run / "csv/metrics.csv")) == len(rows_of(run)) - 1
    (run / "csv/metrics.csv").unlink()
    (run / "csv").rmdir()
    (run / "csv").write_text("in the way")
    assert track.main([str(run), "--to", "csv"]) == 1
    assert "Warning: csv:" in capsys.readouterr().out


def test_a_run_whose_tracker_fails_in_the_middle_ends_well(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "csv").write_text("in the way")
    done = train_forked([*tiny, "--run_dir", str(run), "--max_steps", "3", "--logger", "csv"], tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Warning: csv:") == 1


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(
    train_tiny: TrainTiny, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=re.escape("--logger mlflow: mlflow is not installed; pip install 'sslm[mlflow]'")
    ):
        check_trackers(["csv", "mlflow"])
    assert train_tiny(tmp_path / "run", "--logger", "csv,mlflow") == 2
    assert not (tmp_path / "run").exists()


READ = {
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
[name] = SQLiteStorage.get_runs("sslm")
rows = [(row["step"], row.get("train/loss")) for row in SQLiteStorage.get_logs("sslm", name)]
[model] = SQLiteStorage.list_artifacts("sslm")
files = [file["path"] for file in SQLiteStorage.get_artifact_manifest("sslm", model["name"], "latest")["manifest"]]
""",
    "mlflow": """
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{run}/mlflow/mlflow.db")
[made] = client.search_runs([client.get_experiment_by_name("sslm").experiment_id])
losses = {m.step: m.value for m in client.get_metric_history(made.info.run_id, "train/loss")}
steps = [int(m.value) for m in client.get_metric_history(made.info.run_id, "step")]
rows = [(step, losses.get(step) if step not in steps[:place] else None) for place, step in enumerate(steps)]
files = [file.path.removeprefix("model/") for file in client.list_artifacts(made.info.run_id, "model")]
""",
}
"""Name -> code that reads (step, training loss) of each row that a tracker has of a run, and its model's files."""


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_stores_that_take_nothing_back_have_each_row_once(
    name: str, train_tiny: TrainTiny, tiny: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(name)
    run = tmp_path / "run"
    env = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    assert train_tiny(run, "--stop_after", "5steps") == 75
    for _ in range(2):
        hand_over(run, tmp_path, name, env=env)
    assert train_tiny(run) == 0
    hand_over(run, tmp_path, name, "--model", env=env)
    code = f"import json\nrun = {str(run)!r}\n{READ[name]}\nprint(json.dumps([rows, sorted(files)]))"
    rows, files = json.loads(run_command(["-c", code], env=env).stdout.splitlines()[-1])
    assert rows == [[row["step"], row.get("train/loss")] for row in rows_of(run)]
    assert files == sorted(file.name for file in (run / "export").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces, by pydantic
def test_a_dashboard_has_a_panel_for_each_metric_of_a_run_over_tokens() -> None:
    pytest.importorskip("wandb_workspaces")
    rows = [{"step": 1, "tokens": 64, "lr": 0.1, "train/loss": 2.0, "train/loss/web": 1.0, "val/f1": 0.5, "mfu": None}]
    made = build_workspace(rows, "me", "sslm")
    sections = made._to_model().spec.section.panel_bank_config.sections
    shown = {one.name: [panel.config.metrics for panel in one.panels] for one in sections}
    assert shown == {
        "Loss": [["train/loss"]],
        "Optimisation": [["lr"]],
        "Sources": [["train/loss/web"]],
        "Scores": [["val/f1"]],
    }
    assert {panel.config.x_axis for one in sections for panel in one.panels} == {"tokens"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --to"),
        (["--workspace", "me"], "expected ENTITY/PROJECT"),
        (["--to", "csv", "--model"], "of trackers, wandb, trackio, mlflow take models; given: csv"),
    ],
)
def test_what_is_to_be_tracked_where_must_be_said(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track.main([str(tmp_path), *given]) == 2
    assert said in capsys.readouterr().err
