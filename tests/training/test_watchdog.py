"""A run that hangs leaves its stacks, names the rank that stopped first, and ends; one that is slow, paused or done is left alone."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sslm.system import heartbeats
from sslm.system.heartbeats import Heartbeat, Patience, first_to_stop, own, silent, stall_message
from tests.support.processes import Finished, kill_group, start_command
from tests.support.runs import TrainTiny, ranks_of, wait_for_step

# ------------------------------------------------------------------------------------------------ the core


def one(
    rank: int, rounds: int = 5, turns: int = 1, waits: bool = False, looks: int = 9, has_stacks: bool = True
) -> Heartbeat:
    return Heartbeat(
        "life",
        rank,
        "node1",
        100 + rank,
        40,
        rounds,
        turns,
        50 + rank,
        "taking the step",
        9.0,
        "mine.py:3, load",
        waits,
        looks,
        has_stacks,
    )


def first(*them: Heartbeat, quiet: frozenset[int] = frozenset()) -> list[int]:
    return [heartbeat.rank for heartbeat in first_to_stop({h.rank: h for h in them}, set(quiet))]


def test_whoever_has_done_least_stopped_first() -> None:
    assert first(one(0, rounds=6, turns=0), one(1, rounds=5, turns=7), one(2, rounds=6)) == [1]
    assert first(one(0, turns=4), one(1, turns=4), one(2, turns=3)) == [2]


def test_of_ranks_that_have_done_as_much_the_one_that_doesnt_wait_stopped_first() -> None:
    assert first(one(0, waits=True), one(1), one(2, waits=True)) == [1]
    assert first(one(0, waits=True), one(1, rounds=4, waits=True)) == [1]  # what they did counts more
    assert first(one(0), one(1), one(2, rounds=6)) == [0, 1]


def test_a_process_that_is_paused_stopped_before_those_that_wait_for_it() -> None:
    assert first(one(0, rounds=5), one(1, rounds=6, has_stacks=False), quiet=frozenset({1})) == [1]


def test_a_process_is_silent_where_it_neither_looks_nor_leaves_stacks() -> None:
    before = {0: one(0), 1: one(1, has_stacks=False), 2: one(2, has_stacks=False)}
    after = {0: one(0), 1: one(1, has_stacks=False), 2: one(2, looks=10, has_stacks=False), 3: one(3, has_stacks=False)}
    assert silent(before, after) == {1}


def test_the_sentence_tells_who_stopped_doing_what_where_the_stacks_are_and_what_to_type() -> None:
    them = {0: one(0, rounds=6, waits=True), 1: one(1), 2: one(2, rounds=6, waits=True)}
    assert stall_message(them, set(), 3, 900, Path("run/stacks")) == (
        "no progress for 900 s: rank 1 (process 101 on node1) stopped first, in step 40, taking the step (at mine.py:3, load); the stacks "
        "of 3 of 3 ranks are in run/stacks; run the same command again to go on, with a larger --watchdog_seconds if it was only slow"
    )
    assert "last seen in step 40, taking the step: the process itself is paused, gone, or in" in stall_message(
        them, {1}, 3, 900, Path()
    )
    assert "5 of 8 ranks have no heartbeat there" in stall_message(them, set(), 8, 900, Path())
    assert ": all ranks stopped together, in step 40" in stall_message({0: one(0), 1: one(1)}, set(), 2, 900, Path())
    assert ": ranks 0, 1 stopped together" in stall_message(
        {0: one(0), 1: one(1), 2: one(2, rounds=9)}, set(), 3, 900, Path()
    )
    assert "no rank's heartbeat can be read" in stall_message({}, set(), 3, 900, Path())


def looks_until_over(
    beats: list[int], others: list[int] | None = None, pauses: dict[int, float] | None = None
) -> int | None:
    """The index of the look at which a patience of 10 s, at a look each second, is over."""
    patience, now = Patience(longest=2.0), 1000.0
    for look, beat in enumerate(beats):
        now += 1.0 + (pauses or {}).get(look, 0.0)
        if patience.is_over(now, beat, 10.0, lambda look=look: {1: others[look]} if others else {}):  # type: ignore[misc]
            return look
    return None


def test_patience_is_over_when_nothing_was_done_for_so_long() -> None:
    assert looks_until_over([1, 2, 3] + [4] * 30) == 13
    assert looks_until_over(([1] * 9 + [2]) * 9) is None


def test_patience_lasts_while_others_go_on_and_ends_when_they_do() -> None:
    assert looks_until_over([1] * 60, others=[*range(60)]) is None
    assert looks_until_over([1] * 60, others=[*range(20)] + [20] * 40) == 25
    assert looks_until_over([1] * 60, others=[*range(4)] + [4] * 56) == 10


def test_a_job_that_was_paused_as_a_whole_has_not_stalled() -> None:
    assert looks_until_over([1] * 6 + [2, 3], pauses={5: 10_000.0}) is None
    assert looks_until_over([1] * 30, pauses={5: 10_000.0}) == 9  # two of the pause's seconds count


def test_what_is_no_heartbeat_of_this_start_is_not_read(tmp_path: Path) -> None:
    heartbeats.write(tmp_path, one(0))
    heartbeats.write(tmp_path, replace(one(1), start="former life"))
    heartbeats.heartbeat_file(tmp_path, 2).write_text('{"start": "life"}')
    heartbeats.heartbeat_file(tmp_path, 3).write_text("{")
    assert heartbeats.read(tmp_path, range(9), "life") == {0: one(0)}
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"heartbeat-0000{rank}.json" for rank in range(4)]


def test_the_main_threads_place_is_this_test() -> None:
    at, waits = heartbeats.place()
    assert "heartbeats.py" in at
    assert not waits


# ------------------------------------------------------------------------------------------------ a run that is well


def test_a_run_that_is_done_leaves_no_heartbeats_and_keeps_those_of_a_former_stall(
    train_tiny: TrainTiny, tmp_path: Path
) -> None:
    stacks, former = tmp_path / "run/stacks", tmp_path / "run/stacks.former"
    stacks.mkdir(parents=True)
    heartbeats.stacks_file(stacks, 0).write_text("Thread 0x1")
    (stacks / "stalled").write_text("former life")
    beats = own.beats
    assert train_tiny(tmp_path / "run") == 0
    validation = 1 + 3 + 1  # it begins, each batch ends, it ends
    assert own.beats >= beats + 1 + 8 * 2 + 3 * validation  # and a few of saving
    assert (own.step, own.what) == (9, "loading the batch")
    assert not stacks.exists()
    assert heartbeats.stacks_file(former, 0).read_text() == "Thread 0x1"


# ------------------------------------------------------------------------------------------------ runs that hang

HANGS = """
import os, sys, threading, time
from pathlib import Path
import torch.distributed as dist
from lightning.pytorch import Callback
from sslm import heartbeats, train

class Strange(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            strange(trainer, pl_module)

def strange(trainer, pl_module):
DOES

built = train.build_callbacks
def with_strange(*given):
    callbacks = built(*given)
    return callbacks._replace(others=(*callbacks.others, Strange()))
train.build_callbacks = with_strange
if __name__ == "__main__":
    sys.exit(train.main())
"""
ENDLESS = "        while True: time.sleep(0.1)"
TWO = ["--strategy", "ddp", "--devices", "2"]


def command(tiny: list[str], tmp_path: Path, does: str | None, *flags: str) -> list[str]:
    """The command line of a run that does something strange in its fourth step."""
    script = tmp_path / "hangs.py"
    script.write_text(HANGS.replace("DOES", does or "    pass"))
    return [str(script), *tiny, "--run_dir", str(tmp_path / "run"), "--watchdog_seconds", "4", *flags]


def wait_for_third_step(run: Path) -> None:
    """The first two may take ten times as long."""
    end = time.monotonic() + 60
    while '"step": 3,' not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def run(
    arguments: list[str], folder: Path, stop: str | None = None, signals: list[signal.Signals] | None = None
) -> Finished:
    """Run to its end; where `stop` is given, the rank with this LOCAL_RANK is paused once it trains. Nothing may be left running."""
    process = start_command(arguments, env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"})
    try:
        if stop is not None:
            wait_for_step(folder)
            wait_for_third_step(folder)
            os.kill(ranks_of(folder)[stop], signal.SIGSTOP)
        out, err = process.communicate(timeout=120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        left = ranks_of(folder)
    finally:
        kill_group(process)
        process.communicate()
    assert not left, f"left running: {left}"
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def said_of_stall(done: Finished) -> str:
    (sentence,) = re.findall(r"error: (no progress .*)", done.stderr)
    return str(sentence)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_in_python_is_named_and_all_stacks_are_there(
    rank: int, tiny: list[str], tmp_path: Path
) -> None:
    does = f"    if trainer.global_rank == {rank}:\n{ENDLESS}"
    done = run(command(tiny, tmp_path, does, *TWO), tmp_path / "run")
    assert done.returncode == 1, done.stderr
    said = said_of_stall(done)
    assert re.search(
        rf"rank {rank} \(process \d+ on .*\) stopped first, in step 4, taking the step \(at hangs.py:\d+, strange\)",
        said,
    )
    assert f"the stacks of 2 of 2 ranks are in {tmp_path / 'run/stacks'}" in said
    stacks = [heartbeats.stacks_file(tmp_path / "run/stacks", n).read_text() for n in range(2)]
    assert "in strange" in stacks[rank]
    assert "in all_reduce" in stacks[1 - rank]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"], status["reason"]) == ("failed", 1, 3, said)


@pytest.mark.slow
@pytest.mark.parametrize(("local_rank", "code"), [("", -signal.SIGKILL), ("1", 1)])
def test_a_rank_that_is_paused_is_named_and_ended_even_where_it_is_the_others_parent(
    local_rank: str, code: int, tiny: list[str], tmp_path: Path
) -> None:
    done = run(command(tiny, tmp_path, None, *TWO, "--max_steps", "100000"), tmp_path / "run", stop=local_rank)
    assert done.returncode == code, done.stderr
    said, rank = said_of_stall(done), int(local_rank or 0)
    assert re.search(
        rf"rank {rank} \(.*\) stopped first, last seen in step \d+, .*: the process itself is paused, gone, or in .*; the stacks of 1 of 2",
        said,
    )
    assert "in main" in heartbeats.stacks_file(tmp_path / "run/stacks", 1 - rank).read_text()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 1, said)


@pytest.mark.slow
def test_a_single_process_that_hangs_ends_and_the_same_command_goes_on(tiny: list[str], tmp_path: Path) -> None:
    does = f"    if not Path('{tmp_path}/again').exists():\n{ENDLESS}"
    done = run(command(tiny, tmp_path, does), tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "stopped first, in step 4, taking the step (at hangs.py:" in said_of_stall(done)
    (tmp_path / "again").touch()
    done = run(command(tiny, tmp_path, does), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run/stacks").exists()
    assert "in strange" in heartbeats.stacks_file(tmp_path / "run/stacks.former", 0).read_text()


@pytest.mark.slow
def test_a_watchdog_that_hangs_in_the_same_file_system_is_watched_too(tiny: list[str], tmp_path: Path) -> None:
    part = heartbeats.heartbeat_file(tmp_path / "run/stacks", 0).with_suffix(".tmp")
    does = f"    os.mkfifo('{part}')  # whoever writes it waits for a reader\n    while True: time.sleep(0.1)"
    done = run(command(tiny, tmp_path, does), tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "in strange" in done.stderr
    assert (
        f"no progress for 4 s in step 4, taking the step, and {tmp_path / 'run/stacks'} can't be written" in done.stderr
    )


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_goes_on_are_left_alone(tiny: list[str], tmp_path: Path) -> None:
    does = """
    for part in range(12 if trainer.global_rank == 0 else 0):
        heartbeats.beat("uploading")
        time.sleep(0.5)"""
    done = run(command(tiny, tmp_path, does, *TWO), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run/stacks").exists()


@pytest.mark.slow
def test_a_run_that_is_paused_as_a_whole_goes_on(tiny: list[str], tmp_path: Path) -> None:
    arguments = command(
        tiny, tmp_path, None, *TWO, "--max_steps", "300", "--val_every", "999", "--checkpoint.every_steps", "999"
    )
    process = start_command(arguments, env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"})
    try:
        wait_for_step(tmp_path / "run")
        wait_for_third_step(tmp_path / "run")
        os.killpg(process.pid, signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=8)
        os.killpg(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=120)
    finally:
        kill_group(process)
        process.communicate()
    assert process.returncode == 0, err
