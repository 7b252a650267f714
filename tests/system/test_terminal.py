"""What goes to the screen while something takes long."""

from pathlib import Path

import pytest
from rich.console import Console

from sslm.system import terminal
from sslm.system.terminal import NO_BREAK, Progress, TrainingProgress, preparation_progress, say, transfer_progress
from tests.support.processes import Ranks
from tests.support.runs import rows_of
from tests.support.terminals import Terminal


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_PLAIN_LINES", -1.0)


def test_plain_lines_come_where_nobody_watches(no_pause: None, capsys: pytest.CaptureFixture[str]) -> None:
    with transfer_progress("Bringing", 4 << 20) as add:
        add(1 << 20)
        add(3 << 20)
    with preparation_progress("Preparing a.txt") as show:
        show(10, 1000, 0.5)
    training = TrainingProgress(total_steps=20)
    training.step(15, loss=2.5, tokens_per_second=1e5, mfu=0.4, done=0.5)
    training.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Bringing: 1 MiB of 4 MiB, ")
    assert lines[1] == "Bringing: 4 MiB of 4 MiB, 0s left"
    assert lines[2].startswith("Preparing a.txt 50%: 10 documents (")
    assert lines[3].startswith("step     15/20  loss 2.5000  100k tokens/s  MFU 40%  0s left")


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in range(1000):
        progress.show(f"{step}")
    assert capsys.readouterr().out == ""


def test_what_would_steer_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("label \x1b]0;title\x07 of \u202e4\n  next line, 10\N{NO-BREAK SPACE}steps, \N{WOMAN}\u200d\N{MICROSCOPE}")
    title = "label \\x1b]0;title\\x07 of \\u202e4"
    assert capsys.readouterr().out == f"{title}\n  next line, 10 steps, \N{WOMAN}\u200d\N{MICROSCOPE}\n"


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "is_watched", lambda: True)
    monkeypatch.setattr(terminal, "console", lambda: Console(force_terminal=True, width=100, color_system=None))
    with transfer_progress("Bringing [bold]", 10) as add:
        add(5)
    assert "Bringing [bold]: 5 B of 10 B" in capsys.readouterr().out


def test_a_run_leaves_lines_on_the_terminal_and_no_bar(tiny: list[str], tmp_path: Path) -> None:
    screen, run = Terminal(width=80), tmp_path / "run"
    ranks = Ranks([*tiny, "--run_dir", str(run)], tmp_path / "log", before=screen.take)
    lines = screen.read_all()
    assert ranks.wait() == [0]
    assert not [line for line in lines if "━" in line or "MFU" in line]
    assert screen.said.count("━".encode()) > 0  # there was one
    assert max(len(line) for line in lines if str(run) not in line) <= 80
    validations = [number for number, line in enumerate(lines) if line.startswith("step ")]
    samples = [row["samples"] for row in rows_of(run) if "val/loss" in row]
    assert len(validations) == len(samples) == 3
    assert validations[1] == validations[0] + 1  # without samples, which are noise
    assert lines[validations[1] + 1] == "    Samples: held-out text >> what the model writes after it"


def test_words_stay_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "is_watched", lambda: True)
    monkeypatch.setattr(terminal, "console", lambda: Console(force_terminal=True, width=20, color_system=None))
    terminal.say(f"  a line of words and one a{NO_BREAK}b cut-between/words")
    terminal.say("python -m sslm.train --data.train YOUR.txt", to_copy=True)
    assert capsys.readouterr().out.splitlines() == [
        "  a line of words",
        "    and one a b",
        "    cut-between/words",
        "python -m sslm.train --data.train YOUR.txt",
    ]
