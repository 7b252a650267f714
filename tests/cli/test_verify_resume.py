"""`sslm verify-resume`: it says that nothing differs where nothing does, and what where something does."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sslm.cli.parse import parse
from sslm.cli.verify_resume import ROUNDING, SHORT_ROUNDING, _take_own, default_variation, main, report, tolerance_for
from sslm.cli.verify_resume.comparison import compare, first_difference
from sslm.cli.verify_resume.trials import Trial
from sslm.runs.folder import RunFolder
from sslm.system.files import sha256_of
from sslm.system.terminal import console
from tests.support.files import use_for_temporary_files
from tests.support.processes import Finished, train_forked
from tests.support.runs import SMALL_LLAMA, TrainTiny, damage, rows_of

Verify = Callable[..., Finished]


@pytest.fixture
def verify(text: Path, cache: Path, tmp_path: Path) -> Verify:
    """verify(*flags) -> the finished process; what it leaves is under tmp_path/temporary."""
    (tmp_path / "temporary").mkdir()

    def run(*flags: str, **env: str) -> Finished:
        data = ["--data.train", str(text), "--data.document_separator", "\n-----\n", "--data.cache_dir", str(cache)]
        data += shlex.split(
            "--data.tokenizer bpe:512 --data.val_sequences 4 --seq_len 32 --batch_size 4 --accelerator cpu"
        )
        there = partial(use_for_temporary_files, tmp_path / "temporary")
        how: dict[str, Any] = {"timeout": 500, "env": {"COLUMNS": "240", **env}, "before": there, "verb": main}
        return train_forked([*data, *SMALL_LLAMA, *flags], tmp_path / "log", 1, **how)

    return run


def left_in(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "temporary").iterdir() if path.name.startswith("sslm")]


def row_of(name: str, printed: str) -> list[str]:
    """A run's cells in the table, their first lines."""
    [line] = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


# ------------------------------------------------------------------------------------------------ the whole


@pytest.mark.slow
def test_killed_and_resumed_on_two_processes_does_not_differ(verify: Verify, tmp_path: Path) -> None:
    flags = shlex.split("--steps 8 --kills 2 --also '--strategy fsdp --devices 2' --model.attention_dropout 0.1")
    done = verify(*flags, "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout
    _, _, _, how, result = row_of("killed", done.stdout)
    assert (how, result) == ("bitwise", "no difference in 8 steps, 37,024 parameters")
    assert done.stdout.count("SIGTERM at step") >= 4  # said at once, and in the table
    assert done.stdout.count("SIGKILL at step") >= 4
    assert row_of("also-1", done.stdout)[3:] == ["batches", "no difference in the batches of 8 steps"]
    assert "attention_dropout 0.1: drawn for each micro-batch" in done.stdout
    assert {"straight", "killed", "also-1"} <= {path.name for path in (tmp_path / "kept").iterdir()}
    runs = [
        [row for row in rows_of(tmp_path / "kept" / name) if "train/loss" in row] for name in ("straight", "killed")
    ]
    assert [row["step"] for row in runs[0]] == list(range(1, 9))
    assert [row["lr"] for row in runs[0]] == [row["lr"] for row in runs[1]]
    assert not left_in(tmp_path)


def test_run_that_fails_is_told_with_its_last_words(verify: Verify, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'sslm.train' in sys.orig_argv: raise SystemExit('no such luck')"
    )
    done = verify(PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}")
    assert done.returncode == 1
    assert row_of("straight", done.stdout)[-1] == "exit code 1 after step 0"
    assert row_of("killed", done.stdout)[2] == "never"
    assert "no such luck" in done.stdout
    assert len(left_in(tmp_path)) == 1


@pytest.mark.slow
def test_what_only_train_finds_wrong_is_the_users_error_here_too(verify: Verify, tmp_path: Path) -> None:
    done = verify("--model.hiden_size", "32")
    assert done.returncode == 2
    [_, sentence] = done.stdout.splitlines()  # what is to be done, and why it is not
    assert sentence.startswith("error: ")
    assert "hiden_size" in sentence
    assert not left_in(tmp_path)


# ------------------------------------------------------------------------------------------------ rows

ROWS: list[dict[str, Any]] = [
    {"step": 0, "val/loss": 6.0, "val/accuracy": 0.5, "samples": ["a"]},
    {"step": 1, "train/loss": 5.5, "grad_norm": 0.5, "lr": 1e-3, "batch_digest": "ab", "tokens_per_second": 9.0},
    {"step": 2, "train/loss": 5.0, "grad_norm": 0.6, "lr": 2e-3, "batch_digest": "cd", "tokens_per_second": 8.0},
    {"step": 2, "val/loss": 5.1, "val/accuracy": 0.6, "samples": ["b"]},
]


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    """ROWS, one of them with other values."""
    return [row | values if row is ROWS[number] else row for row in ROWS]


@pytest.mark.parametrize("tolerance", [0.0, 1e-5, math.inf])
def test_equal_rows_do_not_differ(tolerance: float) -> None:
    assert first_difference(ROWS, changed(2, tokens_per_second=1.0, mfu=0.5), tolerance) is None


@pytest.mark.parametrize(
    ("number", "values", "expected"),
    [
        (0, {"val/loss": 6.5}, (0, "val/loss", 6.0, 6.5)),
        (1, {"train/loss": 5.6, "batch_digest": "xx"}, (1, "batch_digest", "ab", "xx")),
        (2, {"train/loss": 5.1, "grad_norm": 0.7}, (2, "train/loss", 5.0, 5.1)),
        (2, {"grad_norm": 0.7}, (2, "grad_norm", 0.6, 0.7)),
        (2, {"lr": 3e-3}, (2, "lr", 2e-3, 3e-3)),
        (3, {"val/loss": math.nan}, (3 - 1, "val/loss", 5.1, math.nan)),
        (2, {"train/loss": math.nextafter(5.0, 6.0)}, (2, "train/loss", 5.0, math.nextafter(5.0, 6.0))),
        (3, {"val/accuracy": 0.7}, (2, "val/accuracy", 0.6, 0.7)),
        (3, {"samples": ["c"]}, (2, "samples", ["b"], ["c"])),
    ],
)
def test_first_step_and_quantity_that_differ_are_named(
    number: int, values: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    found = first_difference(ROWS, changed(number, **values))
    assert found is not None
    assert repr(tuple(found)) == repr(expected)  # NaN is itself here


def test_rows_that_are_missing_or_there_twice_differ() -> None:
    assert str(first_difference(ROWS, ROWS[:2])) == "step 2: batch_digest is missing, there once in the straight run"
    assert str(first_difference(ROWS, [*ROWS, ROWS[1]])) == (
        "step 1: batch_digest is there 2 times, there once in the straight run"
    )


def test_rounding_is_allowed_where_runs_have_other_sizes() -> None:
    assert first_difference(ROWS, changed(2, **{"train/loss": 5.00002, "grad_norm": 0.6000001}), 1e-5) is None
    found = first_difference(ROWS, changed(2, **{"train/loss": 5.0002}), 1e-5)
    assert found is not None
    assert found.quantity == "train/loss"
    assert first_difference(ROWS, changed(2, **{"train/loss": 9.0, "grad_norm": 9.0}), math.inf) is None
    assert first_difference(ROWS, changed(2, batch_digest="xx"), math.inf) == (2, "batch_digest", "cd", "xx")
    assert first_difference(ROWS, changed(3, **{"val/accuracy": 0.61, "samples": ["c"]}), 1e-5) is None


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def stopped(train_tiny: TrainTiny, tmp_path: Path) -> tuple[Path, Path]:
    """Two equal runs, stopped half-way."""
    assert train_tiny(tmp_path / "straight", "--stop_after", "4steps") == 75
    shutil.copytree(tmp_path / "straight", tmp_path / "other")
    return tmp_path / "straight", tmp_path / "other"


@pytest.mark.parametrize("name", ["", "model.", "optim."])
def test_one_number_changed_in_a_checkpoint_that_is_gone_on_from_is_found(
    name: str, stopped: tuple[Path, Path], train_tiny: TrainTiny
) -> None:
    straight, other = stopped
    if name:
        damage(other / "checkpoints/step-000004", name)
    for run in stopped:
        assert train_tiny(run) == 0
    found = compare(RunFolder(straight), RunFolder(other))
    assert found.parameters == 37_024
    assert found.is_same is not bool(name)
    if name:
        assert found.first is not None
        assert found.first.step == (5 if name == "model." else 6)  # moments act with the next update
        assert found.first.quantity == "train/loss"
        assert found.tensor is not None
        assert not compare(RunFolder(straight), RunFolder(other), ROUNDING).is_same


@pytest.mark.slow
def test_what_changes_a_weight_between_two_starts_is_told(
    stopped: tuple[Path, Path],
    tiny: list[str],
    train_tiny: TrainTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console(), "_width", 240)  # made before, perhaps, and as wide as the terminal was then
    two = "--strategy fsdp --devices 2"
    shutil.copytree(tmp_path / "other", tmp_path / "also-1")
    damage(tmp_path / "other/checkpoints/step-000004")
    for run in stopped:
        assert train_tiny(run) == 0
    flags = [*tiny, "--run_dir", str(tmp_path / "also-1"), *shlex.split(two)]
    assert train_forked(flags, tmp_path / "log").returncode == 0
    configs = parse(tiny), parse(tiny), parse([*tiny, *shlex.split(two)])
    names = {"straight": "", "other": "", "also-1": two}
    trials = [
        Trial(name, tmp_path, tiny, config, variation, code=0)
        for (name, variation), config in zip(names.items(), configs, strict=True)
    ]
    capsys.readouterr()
    assert not report(trials, 8)
    said = capsys.readouterr().out
    assert "train/loss is" in row_of("other", said)[-1]
    assert "is the first tensor that differs" in row_of("other", said)[-1]
    assert row_of("also-1", said)[3] == "to 1e-05"
    assert "no difference in 8 steps" in row_of("also-1", said)[-1]
    assert report(trials[::2], 8)


def test_tensors_that_differ_at_the_end_are_named(stopped: tuple[Path, Path]) -> None:
    straight, other = map(RunFolder, stopped)
    name = damage(other.checkpoints / "step-000004", "model.", by=0.5)
    found = compare(straight, other)
    assert found.first is None
    assert found.tensor is not None
    assert found.farthest is not None
    assert found.tensor.name == found.farthest.name == name
    assert found.farthest.largest == pytest.approx(0.5)
    assert not compare(straight, other, ROUNDING).is_same
    assert compare(straight, other, math.inf).is_same
    damage(other.checkpoints / "step-000004", "model.", by=-0.5 + 1e-5)
    assert compare(straight, other, ROUNDING).is_same
    assert not compare(straight, other).is_same


def test_other_amendments_and_damage_are_found(stopped: tuple[Path, Path]) -> None:
    straight, other = map(RunFolder, stopped)
    file = other.checkpoints / "step-000004/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"amendments": [{"kind": "skip"}]}))
    found = compare(straight, other)
    assert found.first is not None
    assert "state.json has " in str(found.first)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (file.parent / "manifest.json").write_text(json.dumps(manifest))
    found = compare(straight, other)
    assert found.first is not None
    assert found.first.quantity == "amendments of the checkpoint"


# ------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run_dir", "x"], "--run_dir: verify-resume sets this itself"),
        (["--max_steps", "9"], "--steps says how many"),
        (["--stop_after=3steps"], "--stop_after: verify-resume sets this itself"),
        (["--resume", "never"], "--resume: verify-resume sets this itself"),
        (["--stepz", "9"], "there is no flag --stepz"),
        (["--steps", "many"], "--steps many: expected a whole number, 4 or more"),
        (["--kills", "1"], "--kills 1: expected a whole number, 2 or more"),
        (["--kills"], "--kills needs a value"),
        (["--also", "--devices=2"], '--also needs a value, such as --also="--devices 2"'),
        (["--also", " "], "--also needs a value"),
        (["--keep", ""], "--keep needs a value"),
        (["--also", "--batch_size 8"], "may not change batch_size"),
        (["--also", "--devises 2"], "there is no flag --devises (did you mean --devices?)"),
        (["--also", "--devices 3"], "can't be shared evenly by 3 devices"),
        (["--also", "--run_dir x"], "--run_dir: verify-resume sets this itself"),
        (["--also", "--strategy 'ddp"], "No closing quotation"),
        (["--keep", str(Path(__file__).parent)], "there is something already"),
    ],
)
def test_wrong_flags_are_told_in_a_sentence(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["--accelerator", "cpu", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_flags_of_this_verb_may_stand_among_those_of_train() -> None:
    options, typed = _take_own(
        ["--seed", "1", "--kills=2", "--predictions", "--also=--devices=2", "--also", "--devices 4"]
    )
    assert (options.steps, options.kills, options.keep) == ("30", "2", None)
    assert options.also == ["--devices=2", "--devices 4"]
    assert typed == ["--seed", "1", "--predictions"]


def test_help_shows_this_verbs_flags_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--steps", "--kills", "--also", "--keep", "sslm train --help"))
    assert "--batch_size" not in shown


@pytest.mark.parametrize(
    ("flags", "also"),
    [
        ([], "--strategy ddp --devices 2"),
        (["--batch_size", "5"], "--micro_batch_size 1"),
        (["--batch_size", "4", "--micro_batch_size", "4"], "--micro_batch_size 1"),
        (["--batch_size", "4", "--micro_batch_size", "2"], "--strategy ddp --devices 2"),
        (["--strategy", "fsdp", "--devices", "2"], "--strategy single --devices 1"),
    ],
)
def test_without_also_another_number_of_processes_is_tried(flags: list[str], also: str) -> None:
    assert default_variation(parse(["--accelerator", "cpu", *flags])) == also


@pytest.mark.parametrize(
    ("flags", "also", "drawn", "tolerance"),
    [
        ([], ["--devices", "2"], [], ROUNDING),
        ([], ["--devices", "2"], ["dropout 0.1"], math.inf),
        (["--micro_batch_size", "2"], ["--devices", "2"], ["dropout 0.1"], ROUNDING),
        (["--micro_batch_size", "2"], ["--micro_batch_size", "auto"], ["dropout 0.1"], math.inf),
        (["--micro_batch_size", "2"], ["--devices", "2", "--strategy", "tp"], ["dropout 0.1"], math.inf),
        (["--precision", "bf16-mixed"], ["--devices", "2"], [], SHORT_ROUNDING),
    ],
)
def test_what_is_drawn_at_random_says_what_can_be_compared(
    flags: list[str], also: list[str], drawn: list[str], tolerance: float
) -> None:
    plain = ["--accelerator", "cpu", "--batch_size", "4", *flags]
    assert tolerance_for(parse(plain), parse([*plain, *also]), drawn) == tolerance
