"""Whatever becomes of its output, a command does its work and ends with the same exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import train_forked
from tests.support.runs import rows_of

COMMAND = """
import sys, time
from sslm.system.errors import UserError
from sslm.system.exits import exits_politely
from sslm.system.terminal import print_table, say

@exits_politely
def main(arguments=None):
    with open("work", "w", encoding="utf-8") as work:
        for turn in range(int(sys.argv[1])):
            say("你好，世界" * 1000)
            print("…", flush=True)
            print("…", file=sys.stderr)
            print_table(["…"], [["世"]], (), ())
            work.write(f"{turn}\\n")
        print(work.fileno(), file=work)
    raise UserError("世界 is not allowed")

sys.exit(main())
"""
TURNS = 40


def command(shell: str, folder: Path, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run COMMAND with the redirections of a shell; see that it did all its work, and in a file of its own."""
    (folder / "command.py").write_text(COMMAND)
    words = ["bash", "-o", "pipefail", "-c", f"{sys.executable} command.py {TURNS} {shell}"]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})}
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, timeout=60)
    *turns, descriptor = (folder / "work").read_text().splitlines()
    assert turns == [str(turn) for turn in range(TURNS)]
    assert int(descriptor) > 2
    assert done.returncode == 2, done.stderr
    return done


@pytest.mark.parametrize(
    "shell", ["| head -1", ">/dev/full", "2>/dev/full", ">&-", "2>&-", "<&- >&- 2>&-", "|& head -1"]
)
def test_output_that_goes_nowhere_changes_nothing(shell: str, tmp_path: Path) -> None:
    done = command(shell, tmp_path)
    assert b"Traceback" not in done.stdout + done.stderr
    if "2>" not in shell and "|&" not in shell:
        assert done.stderr.endswith("error: 世界 is not allowed\n".encode())


def test_characters_that_stdout_lacks_are_question_marks(tmp_path: Path) -> None:
    done = command("", tmp_path, {"PYTHONIOENCODING": "ascii"})
    assert done.stdout.startswith(b"?????" * 1000 + b"\n?\n?\n?\n")
    assert done.stderr.endswith(b"error: \\u4e16\\u754c is not allowed\n")


def test_a_reader_that_pauses_is_waited_for_and_then_left(tmp_path: Path) -> None:
    in_training = "from sslm.system import output\noutput.PAUSE_SECONDS = 0.3\noutput.leave_paused_readers()\n"
    (tmp_path / "command.py").write_text(in_training + COMMAND)
    words = [sys.executable, "command.py", str(TURNS)]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        words, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(timeout=60) == 2
        assert len(process.stdout.read()) > 1000  # type: ignore[union-attr]
    assert (tmp_path / "work").read_text().count("\n") == TURNS + 1


def test_what_has_taken_the_place_of_stdout_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from sslm.__main__ import main

    ours = sys.stdout
    assert main(["--version"]) == 0
    assert sys.stdout is ours
    assert capsys.readouterr().out.count(".") == 2


def _lose_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.close(2)


def test_a_run_goes_on_without_output(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_forked([*tiny, "--run_dir", str(run)], tmp_path / "log", before=_lose_output).returncode == 0
    assert sum("train/loss" in row for row in rows_of(run)) == 8
    assert (run / "export/model.safetensors").is_file()
    assert (run / "checkpoints/step-000008").is_dir()
