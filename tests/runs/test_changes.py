"""Settings that a person changes on purpose while a run goes on (--resume_with)."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sslm.cli.ckpt import main as ckpt
from sslm.config import FLAGS, Config, DataConfig
from sslm.config.written import to_tree
from sslm.runs.changes import WHY_FIXED, differences, may_change, parse_resume_with
from sslm.runs.checkpoints.folder import newest_first, read_state
from sslm.system.errors import UserError
from sslm.system.plain_yaml import load
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, digests_of, losses_of, rows_of, tensors_of, val_of

CHANGED = shlex.split(
    "--optim.lr 1e-2 --optim.schedule constant --optim.weight_decay 0 --optim.beta2 0.9 --robust.z_loss 1e-4 "
    "--model.attention_dropout 0.2"
)
NAMES = ",".join(name.removeprefix("--") for name in CHANGED[::2])


def test_each_setting_may_change_by_itself_or_if_it_is_named_or_there_is_a_reason() -> None:
    for name in [*FLAGS, "model.hidden_size", "objective.ratio"]:
        if may_change(name, [name]):
            assert parse_resume_with(name) == [name]
            assert name not in WHY_FIXED
        else:
            with pytest.raises(UserError, match=f"{name} can't change when a run resumes: "):
                parse_resume_with(f"optim.lr,{name}")
    assert parse_resume_with("optim.lr, --optim.schedule,model.resid_pdrop") == [
        "optim.lr",
        "optim.schedule",
        "model.resid_pdrop",
    ]
    with pytest.raises(UserError, match=r"there is no setting lr \(did you mean optim.lr"):
        parse_resume_with("lr")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run that stopped at step 3."""
    from sslm.train import main

    run = tmp_path_factory.mktemp("begun") / "run"
    assert main([*tiny, "--run_dir", str(run), "--stop_after", "3steps"]) == 75
    return run


def without_newest(run: Path) -> None:
    """Leave the run as a kill before its newest checkpoint was written would."""
    shutil.rmtree(newest_first(run / "checkpoints")[0])
    (run / "checkpoints/latest").unlink()


def test_a_change_is_refused_unless_it_is_named_and_then_resumes_exactly(
    begun: Path, train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for run in (straight, killed):
        shutil.copytree(begun, run)
    assert train_tiny(straight, *CHANGED) == 2
    assert "or, to change this from here on, --resume_with model.attention_dropout," in capsys.readouterr().err
    assert train_tiny(straight, *CHANGED, "--resume_with", "optim.lr,optim.schedule,model.attention_dropout") == 2
    said = capsys.readouterr().err
    assert "optim.weight_decay (was 0.1, now 0.0)" in said
    assert "optim.lr" not in said.split(" or another ")[0]
    assert train_tiny(straight, *CHANGED, "--resume_with", NAMES) == 0
    assert "Changed from step 3 on: " in capsys.readouterr().out

    assert train_tiny(killed, *CHANGED, "--resume_with", NAMES, "--stop_after", "2steps") == 75
    without_newest(killed)
    assert train_tiny(killed, *CHANGED, "--stop_after", "3steps") == 75
    assert train_tiny(killed) == 2
    assert train_tiny(killed, *CHANGED) == 0
    assert (losses_of(killed), val_of(killed)) == (losses_of(straight), val_of(straight))
    assert losses_of(straight)[:3] == losses_of(begun)
    ends = [tensors_of(newest_first(run / "checkpoints")[0]) for run in (straight, killed)]
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())
    assert {row["lr"] for row in rows_of(straight) if row["step"] > 3 and "lr" in row} == {1e-2}

    for run in (straight, killed):
        [record] = map(json.loads, (run / "changes.jsonl").read_text().splitlines())
        assert (record["step"], record["changed"]["optim.schedule"]) == (3, ["cosine", "constant"])
        assert set(record["changed"]) == set(NAMES.split(","))
        assert [(row["step"], row["changed"]) for row in rows_of(run) if "changed" in row] == [(3, record["changed"])]
        settings = load((run / "config.yaml").read_text())
        assert (settings["optim"]["lr"], settings["resume_with"]) == (1e-2, None)
        assert ckpt(["ls", str(run)]) == 0
        assert ckpt(["verify", str(run)]) == 0


def test_another_runs_checkpoint_goes_on_with_other_settings(
    begun: Path, train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--resume", str(begun), "--optim.lr", "1e-2"]
    assert train_tiny(tmp_path / "run", *flags, "--dry_run") == 2
    assert "optim.lr (was not set, now 0.01)" in capsys.readouterr().err
    assert train_tiny(tmp_path / "run", *flags, "--resume_with", "optim.lr", "--stop_after", "1steps") == 75
    assert train_tiny(tmp_path / "run", "--optim.lr", "1e-2") == 0
    assert json.loads((tmp_path / "run/changes.jsonl").read_text())["changed"] == {"optim.lr": [None, 0.01]}
    assert [row["step"] for row in rows_of(tmp_path / "run") if "changed" in row] == [3]


def test_batches_of_another_size_go_on_at_the_same_example(
    begun: Path, tiny: list[str], train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = shlex.split("--batch_size 8 --optim.lr 1e-2 --max_steps 100 --max_tokens 1664")
    named = [*flags, "--resume_with", "batch_size,optim.lr"]
    straight, killed, small = (tmp_path / name for name in ("straight", "killed", "small"))
    shutil.copytree(begun, straight)
    shutil.copytree(begun, killed)
    assert train_tiny(straight, *named, "--dry_run") == 0
    assert train_tiny(straight, *named) == 0
    assert train_tiny(killed, *named, "--stop_after", "1steps") == 75
    without_newest(killed)
    ranks = [*tiny, "--run_dir", str(killed), *flags, "--devices", "2", "--stop_after", "2steps"]
    assert train_forked(ranks, tmp_path / "log").returncode == 75
    with_a_loader = [*tiny, "--run_dir", str(killed), *flags, "--data.num_workers", "1"]
    assert train_forked(with_a_loader, tmp_path / "log").returncode == 0
    assert losses_of(killed) == pytest.approx(losses_of(straight), abs=1e-6)
    assert digests_of(killed) == digests_of(straight)
    assert val_of(killed).keys() == val_of(straight).keys() == {0, 4, 8}

    assert train_tiny(small, "--max_steps", "13") == 0
    assert digests_of(straight)[:3] == digests_of(small)[:3]
    sums = [sum(int(digest, 16) for digest in digests_of(run)) % (1 << 64) for run in (straight, small)]
    assert sums[0] == sums[1], "each example was read once"
    for run in (straight, killed):
        state = read_state(newest_first(run / "checkpoints")[0])
        sizes = [state[key] for key in ("step", "position", "batch_size", "first_batch_size")]
        assert sizes == [8, 3 * 4 + 5 * 8, 8, 4]
        assert [row["tokens"] for row in rows_of(run) if "train/loss" in row][-2:] == [44 * 32, 52 * 32]
    capsys.readouterr()
    assert train_tiny(straight, *flags) == 0
    assert "This run is done: 8 of 8 steps" in capsys.readouterr().out
    grows = ["--batch_size", "5, 7 from 1800 tokens", "--resume_with", "batch_size,optim.lr"]
    assert train_tiny(straight, *grows, "--max_steps", "9") == 2
    assert "the run ends after 1824 tokens, before 7 comes" in capsys.readouterr().err
    assert train_tiny(straight, *grows, "--max_steps", "11") == 0
    state = read_state(newest_first(straight / "checkpoints")[0])
    assert (state["position"], state["batch_size"]) == (52 + 5 + 2 * 7, "5, 7 from 1800 tokens")


def test_setting_that_came_after_a_run_began_had_its_default() -> None:
    old, new = to_tree(Config()), to_tree(Config(data=DataConfig(bos="never")))
    del old["data"]["bos"], old["data"]["special_tokens"], old["anomaly"]
    assert differences(old, to_tree(Config())) == {}
    assert differences(old, new) == {"data.bos": ("template", "never")}
