"""`sslm evaluate --devices N`: processes of one command, which share its work and end together."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sslm.cli.evaluate import main
from tests.support.processes import start_command
from tests.support.trained import byte_level, save_model

TEXTS = ["the cat sat on a mat, and then once more", "日本語の文章", "a", "tabs\tand 👍🏽 e\u0301"] * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    save_model(folder / "model", "llama", byte_level(" ".join(TEXTS)))
    rows = [json.dumps({"text": text * (1 + number % 5)}) for number, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    return folder


def test_figures_are_those_of_one_process_to_the_last_bit(folder: Path) -> None:
    flags = [str(folder / "model"), "--data", str(folder / "texts.jsonl"), "--device", "cpu", "--batch_size", "3"]
    for num in ("1", "2"):
        assert main([*flags, "--devices", num, "--out", str(folder / f"{num}.json")]) == 0
    one, two = (json.loads((folder / f"{num}.json").read_text())["models"][0]["scores"][0] for num in (1, 2))
    assert one["figures"] == two["figures"]
    assert one["counts"] == two["counts"]


def test_if_one_process_is_killed_the_command_says_so_and_ends(folder: Path) -> None:
    (folder / "endless.txt").write_text("a cat. " * 500_000)
    flags = ["--data", str(folder / "endless.txt"), "--device", "cpu", "--devices", "2"]
    process = start_command(["-m", "sslm", "evaluate", str(folder / "model"), *flags])
    try:
        end, others = time.monotonic() + 120, []
        while not others and time.monotonic() < end and process.poll() is None:
            others = children_of(process)
            time.sleep(0.05)
        os.kill(others[0], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "process" in err
    assert len(err.strip().splitlines()) == 1


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    found = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def test_more_devices_than_there_are_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "model"), "--device", "cpu", "--devices", "999"]) == 2
    assert "--devices 999: this machine has" in capsys.readouterr().err
