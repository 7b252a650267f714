"""What goes to the screen while something takes long."""

import pytest
from rich.console import Console

from sslm.system import terminal
from sslm.system.terminal import Progress, TrainingProgress, preparation_progress, transfer_progress


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_PLAIN_LINES", -1.0)


def test_plain_lines_come_where_nobody_watches(no_pause: None, capsys: pytest.CaptureFixture[str]) -> None:
    with transfer_progress("Bringing", 4 << 20) as add:
        add(1 << 20)
        add(3 << 20)
    with preparation_progress("Preparing a.txt") as show:
        show(10, 1000, 0.5)
    training = TrainingProgress(total_steps=20, first_step=10)
    training.step(15, loss=2.5, tokens_per_second=1e5, mfu=0.4)
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


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "is_watched", lambda: True)
    monkeypatch.setattr(terminal, "console", lambda: Console(force_terminal=True, width=100, color_system=None))
    with transfer_progress("Bringing [bold]", 10) as add:
        add(5)
    assert "Bringing [bold]: 5 B of 10 B" in capsys.readouterr().out
