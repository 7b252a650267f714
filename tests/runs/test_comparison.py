"""sslm plot: which runs and metrics are found, where they stand on an axis, and what is refused."""

from pathlib import Path

import pytest

from sslm.cli.plot import main
from sslm.runs.comparison import find_runs, marks_of, place, short_names
from sslm.runs.folder import RunFolder
from tests.support.written_runs import append_rows, write_run


def test_hours_are_those_of_training_at_each_rows_speed(tmp_path: Path) -> None:
    rows = RunFolder(write_run(tmp_path / "a")).rows()
    hours = place(rows, "hours")
    assert [hours(tokens) * 3600 for tokens in (0, 100, 250, 400)] == pytest.approx([0, 1, 3, 6])
    assert place(rows, "step")(250) == 2.5


def test_runs_are_found_below_a_folder_each_once_and_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "runs/gpt/a"), write_run(tmp_path / "runs/b")
    write_run(second / "checkpoints/copied")  # what lies in a run is its own
    (tmp_path / "runs/again").symlink_to(first)
    found = find_runs([tmp_path, first, tmp_path / "runs"])
    assert [run.path for run in found] == [second, first]
    assert short_names([run.path for run in found]) == ["b", "gpt/a"]


def test_a_picture_of_broken_rows_and_misleading_names_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "$x$", flops_per_token=1e6)
    broken = write_run(tmp_path / "broken", flops_per_token=2e6)
    with open(broken / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 5, "tokens": 500, "train/loss": NaN}\n{"step": 6, "tok')
    anomalies = [{"step": 3, "kind": "spike", "action": "rewind"}, {"step": 99, "kind": "nan", "action": "skip"}]
    append_rows(broken, *anomalies, name="anomalies.jsonl")
    assert [mark.is_rewind for mark in marks_of(RunFolder(broken))] == [True, False]
    out = tmp_path / "all.png"
    assert main([str(tmp_path), "--out", str(out), "--over", "flops", "--smooth", "0.9", "--log", "xy"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metric", "val/los"], "--metric val/los: no row has it (did you mean val/loss?); there are lr, tokens"),
        (["--over", "flops"], "no row tells its flops; choose among step, tokens, hours"),
        (["--out", "a.jpg"], "--out a.jpg: expected a file that ends in .png"),
        (["--out", "away/a.png"], "there is no folder away"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    run = write_run(tmp_path / "a")
    assert main([str(run), "--out", str(tmp_path / "a.png"), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    assert "no run lies at or below it" in capsys.readouterr().err
