"""A closed terminal asks a run to stop; nohup and threads leave it alone; an import ends first; no signal is lost."""

import importlib
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from sslm.system.signals import Stopped, stops_on_signals
from sslm.train import main
from tests.support.processes import Ranks, train_forked
from tests.support.runs import rows_of
from tests.support.terminals import Terminal


def end_after_closed_terminal(hang_up: "signal.Handlers", arguments: list[str], run: Path) -> int | None:
    """Train in a terminal that is closed after a few steps; return the exit code."""
    terminal = Terminal(hang_up=hang_up)
    ranks = Ranks([*arguments, "--run_dir", str(run)], run.parent / "log", before=terminal.take)
    terminal.read_until(b"val/loss", times=2)  # at step 0 and at step 4
    terminal.close()
    return ranks.wait()[0]


def test_a_closed_terminal_saves_and_stops(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert end_after_closed_terminal(signal.SIG_DFL, [*tiny, "--max_steps", "100000"], run) == 75
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, "SIGHUP")
    assert (run / f"checkpoints/step-{status['step']:06d}").is_dir()


def test_under_nohup_a_run_outlives_its_terminal(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert end_after_closed_terminal(signal.SIG_IGN, [*tiny, "--max_steps", "40"], run) == 0
    assert rows_of(run)[-1]["step"] == 40


def test_a_signal_amid_an_import_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 such signals one ended the process with the RecursionError of an import that had swallowed `Stopped`."""
    source = "import signal\ntry:\n    signal.raise_signal(signal.SIGUSR1)\nexcept BaseException:\n    whole = False"
    (tmp_path / "signalled.py").write_text(f"{source}\nelse:\n    whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    whole: list[bool] = []

    def verb(arguments: list[str] | None = None) -> int:
        whole.append(importlib.import_module("signalled").whole)
        time.sleep(30)
        return 0

    with pytest.raises(Stopped, match="SIGUSR1"):
        stops_on_signals(verb)()
    assert whole == [True]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_that_strikes_in_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    """Python swallows what is raised there; a run whose imports had just ended went on for ever."""
    swallowed: list[bool] = []

    class Struck:
        def __del__(self) -> None:
            signal.raise_signal(number)
            swallowed.append(False)

    def verb(arguments: list[str] | None = None) -> int:
        Struck()
        swallowed.append(True)
        time.sleep(30)
        return 0

    with pytest.raises(Stopped, match=number.name):
        stops_on_signals(verb)()
    assert swallowed == [True]


def _in_a_thread(arguments: list[str]) -> int:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()
    return codes[0]


def test_a_run_in_a_thread_does_without_signals(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, "--run_dir", str(tmp_path / "run")]
    done = train_forked(arguments, tmp_path / "log", verb=_in_a_thread)
    assert done.returncode == 0, done.stdout
