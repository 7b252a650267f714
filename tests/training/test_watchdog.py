"""A run that hangs leaves its stacks, names the rank that stopped first, and ends; a slow or paused one goes on."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from sslm.cli import train as cli_train
from sslm.system import heartbeats
from sslm.system.heartbeats import Heartbeat, Patience, first_to_stop, silent, stall_message, this_process
from tests.support.processes import Ranks, kill_group, start_command
from tests.support.runs import TrainTiny, ranks_of, wait_for_step

# ------------------------------------------------------------------------------------------------ the core


def heartbeat(
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
    assert first(heartbeat(0, rounds=6, turns=0), heartbeat(1, rounds=5, turns=7), heartbeat(2, rounds=6)) == [1]
    assert first(heartbeat(0, turns=4), heartbeat(1, turns=4), heartbeat(2, turns=3)) == [2]


def test_of_ranks_that_have_done_as_much_the_one_that_doesnt_wait_stopped_first() -> None:
    assert first(heartbeat(0, waits=True), heartbeat(1), heartbeat(2, waits=True)) == [1]
    assert first(heartbeat(0, waits=True), heartbeat(1, rounds=4, waits=True)) == [1]  # what they did counts more
    assert first(heartbeat(0), heartbeat(1), heartbeat(2, rounds=6)) == [0, 1]


def test_a_process_that_is_paused_stopped_before_those_that_wait_for_it() -> None:
    assert first(heartbeat(0, rounds=5), heartbeat(1, rounds=6, has_stacks=False), quiet=frozenset({1})) == [1]


def test_a_process_is_silent_where_it_neither_looks_nor_leaves_stacks() -> None:
    before = {0: heartbeat(0), 1: heartbeat(1, has_stacks=False), 2: heartbeat(2, has_stacks=False)}
    after = {
        0: heartbeat(0),
        1: heartbeat(1, has_stacks=False),
        2: heartbeat(2, looks=10, has_stacks=False),
        3: heartbeat(3, has_stacks=False),
    }
    assert silent(before, after) == {1}


def test_the_sentence_tells_who_stopped_doing_what_where_the_stacks_are_and_what_to_type() -> None:
    them = {0: heartbeat(0, rounds=6, waits=True), 1: heartbeat(1), 2: heartbeat(2, rounds=6, waits=True)}
    assert stall_message(them, set(), 3, 900, Path("run/stacks")) == (
        "no progress for 900 s: rank 1 (process 101 on node1) stopped first, in step 40, taking the step "
        "(at mine.py:3, load); the stacks of 3 of 3 ranks are in run/stacks; run the same command again to resume, "
        "with a larger --watchdog_seconds if it was only slow"
    )
    assert "last seen in step 40, taking the step: the process itself is paused, has ended, or" in stall_message(
        them, {1}, 3, 900, Path()
    )
    assert "5 of 8 ranks have no heartbeat there" in stall_message(them, set(), 8, 900, Path())
    assert ": all ranks stopped together, in step 40" in stall_message(
        {0: heartbeat(0), 1: heartbeat(1)}, set(), 2, 900, Path()
    )
    assert ": ranks 0, 1 stopped together" in stall_message(
        {0: heartbeat(0), 1: heartbeat(1), 2: heartbeat(2, rounds=9)}, set(), 3, 900, Path()
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
    heartbeats.write(tmp_path, heartbeat(0))
    heartbeats.write(tmp_path, replace(heartbeat(1), start="former life"))
    heartbeats.heartbeat_file(tmp_path, 2).write_text('{"start": "life"}')
    heartbeats.heartbeat_file(tmp_path, 3).write_text("{")
    assert heartbeats.read(tmp_path, range(9), "life") == {0: heartbeat(0)}
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
    beats = this_process.beats
    assert train_tiny(tmp_path / "run") == 0
    validation = 1 + 3 + 1  # it begins, each batch ends, it ends
    step = 1 + 2 + 1 + 1  # it begins, the backward pass begins and ends, the update begins, it ends
    assert this_process.beats >= beats + 1 + 8 * step + 3 * validation  # and a few of saving
    assert (this_process.step, this_process.what) == (9, "loading the batch")
    assert not stacks.exists()
    assert heartbeats.stacks_file(former, 0).read_text() == "Thread 0x1"


# ------------------------------------------------------------------------------------------------ runs that hang


class Strange(Callback):
    """Does something strange in the fourth step."""

    def __init__(self, strange: Callable[[Trainer], None]) -> None:
        self.strange = strange

    def on_train_batch_start(self, trainer: Trainer, pl_module: object, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 3:
            self.strange(trainer)


def do(strange: Callable[[Trainer], None]) -> None:
    """Make `sslm train` in this process do something strange."""
    built = cli_train.build_callbacks

    def with_strange(*arguments: Any) -> cli_train.Callbacks:
        callbacks = built(*arguments)
        return callbacks._replace(others=(*callbacks.others, Strange(strange)))

    cli_train.build_callbacks = with_strange


def hang(rank: int, unless: Path, trainer: Trainer) -> None:
    while trainer.global_rank == rank and not unless.exists():
        time.sleep(0.1)


def hang_in_the_file_system(part: Path, trainer: Trainer) -> None:
    os.mkfifo(part)  # whoever writes it waits for a reader
    while True:
        time.sleep(0.1)


def hang_within_the_step(trainer: Trainer) -> None:
    """As on GPUs: rank 1 stops in its backward pass, rank 0 goes on until it reads something of the device."""
    here = {0: "before_update", 1: "backward"}[trainer.global_rank]
    setattr(trainer.lightning_module.engine, here, lambda *_: hang(trainer.global_rank, Path("/nowhere"), trainer))


def take_long(trainer: Trainer) -> None:
    for _ in range(12 if trainer.global_rank == 0 else 0):
        heartbeats.beat("uploading")
        time.sleep(0.5)


TWO = ["--strategy", "ddp", "--devices", "2"]


def command(tiny: list[str], tmp_path: Path, *flags: str) -> list[str]:
    return [*tiny, "--run_dir", str(tmp_path / "run"), "--watchdog_seconds", "4", *flags]


def run(
    tiny: list[str], tmp_path: Path, *flags: str, strange: Callable[[Trainer], None] | None = None
) -> tuple[list[int | None], str]:
    """Exit codes of a run that does something strange in its fourth step, and what it said."""
    before = partial(do, strange) if strange else None
    ranks = Ranks(command(tiny, tmp_path, *flags), tmp_path / "log", before=before)
    return ranks.wait(60), ranks.said()


def wait_for_third_step(run: Path) -> None:
    """The first two may take ten times as long."""
    wait_for_step(run)
    end = time.monotonic() + 60
    while '"step": 3,' not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def said_of_stall(said: str) -> str:
    (sentence,) = re.findall(r"error: (no progress .*)", said)
    return str(sentence)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_in_python_is_named_and_all_stacks_are_there(
    rank: int, tiny: list[str], tmp_path: Path
) -> None:
    codes, out = run(tiny, tmp_path, *TWO, strange=partial(hang, rank, tmp_path / "nothing"))
    assert codes == [1, 1], out
    said = said_of_stall(out)
    assert re.search(
        rf"rank {rank} \(process \d+ on .*\) stopped first, in step 4, taking the step "
        r"\(at test_watchdog.py:\d+, hang\)",
        said,
    )
    assert f"the stacks of 2 of 2 ranks are in {tmp_path / 'run/stacks'}" in said
    stacks = [heartbeats.stacks_file(tmp_path / "run/stacks", n).read_text() for n in range(2)]
    assert "in hang" in stacks[rank]
    assert "in all_reduce" in stacks[1 - rank]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"], status["reason"]) == ("failed", 1, 3, said)


@pytest.mark.slow
def test_a_rank_that_has_not_come_as_far_within_a_step_is_named(tiny: list[str], tmp_path: Path) -> None:
    codes, out = run(tiny, tmp_path, *TWO, strange=hang_within_the_step)
    assert codes == [1, 1], out
    assert re.search(
        r"rank 1 \(process .* stopped first, in step 4, in the backward pass \(at test_w", said_of_stall(out)
    )


def assert_told(out: str, rank: int, tmp_path: Path) -> None:
    """That this rank was paused."""
    said = said_of_stall(out)
    assert re.search(
        rf"rank {rank} \(.*\) stopped first, last seen in step \d+, .*: the process itself is paused, has ended, or "
        r"runs .*; "
        r"the stacks of 1 of 2",
        said,
    )
    assert "in main" in heartbeats.stacks_file(tmp_path / "run/stacks", 1 - rank).read_text()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 1, said)


@pytest.mark.slow
def test_a_rank_that_is_paused_is_named(tiny: list[str], tmp_path: Path) -> None:
    ranks = Ranks(command(tiny, tmp_path, *TWO, "--max_steps", "100000"), tmp_path / "log")
    wait_for_third_step(tmp_path / "run")
    ranks.signal(signal.SIGSTOP, 1)
    while ranks.processes[0].is_alive():
        time.sleep(0.1)
    ranks.signal(signal.SIGKILL, 1)  # as a launcher does
    assert ranks.wait(60) == [1, -signal.SIGKILL], ranks.said()
    assert_told(ranks.said(), 1, tmp_path)


@pytest.mark.slow
def test_a_rank_that_is_paused_is_ended_even_where_it_is_the_others_parent(tiny: list[str], tmp_path: Path) -> None:
    """As under Lightning's launcher."""
    process = start_command(["-m", "sslm.train", *command(tiny, tmp_path, *TWO, "--max_steps", "100000")])
    try:
        wait_for_third_step(tmp_path / "run")
        process.send_signal(signal.SIGSTOP)
        _, err = process.communicate(timeout=60)
        left = ranks_of(tmp_path / "run")
    finally:
        kill_group(process)
        process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not left, f"left running: {left}"
    assert_told(err, 0, tmp_path)


@pytest.mark.slow
def test_a_single_process_that_hangs_ends_and_the_same_command_goes_on(tiny: list[str], tmp_path: Path) -> None:
    strange = partial(hang, 0, tmp_path / "again")
    codes, out = run(tiny, tmp_path, strange=strange)
    assert codes == [1], out
    assert "stopped first, in step 4, taking the step (at test_watchdog.py:" in said_of_stall(out)
    (tmp_path / "again").touch()
    codes, out = run(tiny, tmp_path, strange=strange)
    assert codes == [0], out
    assert not (tmp_path / "run/stacks").exists()
    assert "in hang" in heartbeats.stacks_file(tmp_path / "run/stacks.former", 0).read_text()


@pytest.mark.slow
def test_a_watchdog_that_hangs_in_the_same_file_system_is_watched_too(tiny: list[str], tmp_path: Path) -> None:
    part = heartbeats.heartbeat_file(tmp_path / "run/stacks", 0).with_suffix(".tmp")
    codes, out = run(tiny, tmp_path, strange=partial(hang_in_the_file_system, part))
    assert codes == [1], out
    assert "in hang_in_the_file_system" in out
    assert f"no progress for 4 s in step 4, taking the step, and {tmp_path / 'run/stacks'} can't be written" in out


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_goes_on_are_left_alone(tiny: list[str], tmp_path: Path) -> None:
    codes, out = run(tiny, tmp_path, *TWO, strange=take_long)
    assert codes == [0, 0], out
    assert not (tmp_path / "run/stacks").exists()


@pytest.mark.slow
def test_a_run_that_is_paused_as_a_whole_goes_on(tiny: list[str], tmp_path: Path) -> None:
    flags = ["--max_steps", "300", "--val_every", "999", "--checkpoint.every_steps", "999"]
    ranks = Ranks(command(tiny, tmp_path, *TWO, *flags), tmp_path / "log")
    wait_for_third_step(tmp_path / "run")
    ranks.signal(signal.SIGSTOP)
    time.sleep(8)
    assert ranks.is_alive()
    ranks.signal(signal.SIGCONT)
    assert ranks.wait(120) == [0, 0], ranks.said()
