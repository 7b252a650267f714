"""Whatever is killed, damaged or full, nothing that was saved is lost, and the same command ends where an
uninterrupted run would have.
"""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sslm.runs import checkpoints
from sslm.runs.checkpoints.folder import damage_of, name_of, newest_first, step_of
from sslm.runs.checkpoints.transaction import set_damaged_aside, write_manifest
from sslm.runs.folder import RunFolder
from tests.support.processes import Ranks, train_forked
from tests.support.runs import TINY, losses_of, rows_of, tensors_of, val_of

EVERY = 2
STEPS = 40


@pytest.fixture(scope="module")
def command(text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with all that could be lost: dropout, micro-batches, a packed mixture in its second stage, averages."""
    folder = tmp_path_factory.mktemp("mixture")
    half = text.read_text()[: text.stat().st_size // 2]
    (folder / "half.txt").write_text(half)
    (folder / "mixture.yaml").write_text(
        json.dumps(
            {
                "data": {
                    "sources": [
                        {"path": str(text), "weight": 2, "name": "all"},
                        {"path": str(folder / "half.txt"), "name": "half"},
                    ],
                    "stages": [{"at_tokens": STEPS // 2 * 4 * 32, "weights": {"all": 1, "half": 3}}],
                }
            }
        )
    )
    return [
        *TINY,
        "--config",
        str(folder / "mixture.yaml"),
        "--data.document_separator",
        "\n-----\n",
        "--data.cache_dir",
        str(cache),
        "--data.packing",
        "best_fit",
        "--model.attention_dropout",
        "0.1",
        "--micro_batch_size",
        "2",
        "--optim.average_decay",
        "0.9",
        "--max_steps",
        str(STEPS),
        "--val_every",
        "15",
        "--checkpoint.every_steps",
        str(EVERY),
        "--checkpoint.keep_every_steps",
        "16",
    ]


@pytest.fixture(scope="module")
def straight(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert Ranks([*command, "--run_dir", str(run)], run.with_name("log")).wait(120) == [0]
    return run


def assert_alike(run: Path, straight: Path) -> None:
    """To the last bit: losses, norms, digests, validations, weights, optimizer and averages."""
    kept = ("step", "train/loss", "grad_norm", "batch_digest", "lr", "val/loss")
    rows, others = ([{k: row[k] for k in kept if k in row} for row in rows_of(r)] for r in (run, straight))
    assert rows == others
    name = name_of(rows[-1]["step"])
    mine, theirs = (tensors_of(r / "checkpoints" / name) for r in (run, straight))
    assert mine.keys() == theirs.keys()
    assert all(mine[tensor].equal(theirs[tensor]) for tensor in mine)
    exports = [(r / "export/model.safetensors").read_bytes() for r in (run, straight)]
    assert exports[0] == exports[1]


def steps_logged(run: Path) -> int:
    return max((row["step"] for row in RunFolder(run).rows() if "train/loss" in row), default=0)


def assert_all_there(run: Path, mirror: Path | None = None) -> None:
    """Whatever has a checkpoint's name is whole, and no more is lost than the one that was being written."""
    for folder in [run] + ([mirror] if mirror else []):
        for checkpoint in newest_first(folder / "checkpoints"):
            if folder is run or (checkpoint / "manifest.json").is_file():
                assert damage_of(checkpoint) == ""
    if (reached := steps_logged(run)) > 2 * EVERY:
        assert reached - step_of(newest_first(run / "checkpoints")[0]) <= 2 * EVERY


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "saving": lambda run, mirror: any((run / "checkpoints").glob(".step-*.tmp")),
    "pruning": lambda run, mirror: any((run / "checkpoints").glob(".step-*.old")),
    "uploading": lambda run, mirror: any(
        not (folder / "manifest.json").exists() for folder in (mirror / "checkpoints").glob("step-*")
    ),
}
"""What a folder looks like meanwhile; but for them a run is killed at any moment."""


def kill_at(moment: str, ranks: Ranks, run: Path, mirror: Path, chance: random.Random) -> bool:
    """Kill all ranks some time after they have begun to step; whether the run was over before."""
    rows = metrics_size(run)
    end = time.monotonic() + 60
    while ranks.is_alive() and metrics_size(run) <= rows and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(chance.random() * 0.25)
    limit = time.monotonic() + 2
    while moment in MOMENTS and time.monotonic() < limit and not seen(moment, run, mirror):
        time.sleep(0.0002)
    time.sleep(chance.random() * 0.002)
    ranks.signal(signal.SIGKILL)
    codes = set(ranks.wait())
    assert codes <= {0, -signal.SIGKILL}, ranks.said()
    return codes == {0}


def metrics_size(run: Path) -> int:
    return (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").is_file() else 0


def seen(moment: str, run: Path, mirror: Path) -> bool:
    try:
        return MOMENTS[moment](run, mirror)
    except OSError:  # it went away while it was looked at
        return False


def kill_often(command: list[str], folder: Path, kills: int, world: int, seed: int) -> Path:
    """Kill and start again so many times (a run that ends begins anew in another folder), then let it end."""
    chance, done, number = random.Random(seed), 0, 0
    while True:
        run, mirror = folder / f"run-{number}", folder / f"mirror-{number}"
        arguments = [*command, "--run_dir", str(run), "--checkpoint.upload", str(mirror)]
        if done >= kills:
            assert set(Ranks(arguments, folder / "log", world).wait(120)) == {0}
            return run
        ranks = Ranks(arguments, folder / "log", world)
        if kill_at(chance.choice([*MOMENTS, "stepping"]), ranks, run, mirror, chance):
            number += 1
        else:
            done += 1
            assert_all_there(run, mirror)


@pytest.mark.slow
def test_a_run_killed_at_many_moments_is_the_uninterrupted_one(
    command: list[str], straight: Path, tmp_path: Path
) -> None:
    assert_alike(kill_often(command, tmp_path, 20, 1, seed=0), straight)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_so_is_one_of_two_processes(strategy: str, command: list[str], straight: Path, tmp_path: Path) -> None:
    command = [*command, "--strategy", strategy, "--micro_batch_size", "1", "--model.attention_dropout", "0"]
    assert set(Ranks([*command, "--run_dir", str(tmp_path / "straight")], tmp_path / "log", 2).wait(120)) == {0}
    assert_alike(kill_often(command, tmp_path, 5, 2, seed=1), tmp_path / "straight")


@pytest.mark.slow
def test_so_is_one_whose_data_comes_from_a_process_of_its_own(
    command: list[str], straight: Path, tmp_path: Path
) -> None:
    assert_alike(kill_often([*command, "--data.num_workers", "1"], tmp_path, 1, 1, seed=2), straight)


# ------------------------------------------------------------------------------------------------ signals


def wait_for_step(run: Path, ranks: Ranks, step: int = 3) -> None:
    end = time.monotonic() + 60
    while ranks.is_alive() and steps_logged(run) < step and time.monotonic() < end:
        time.sleep(0.01)


SIGNALLED = [
    (signal.SIGINT, 1, 0),
    (signal.SIGUSR2, 2, 0),
    (signal.SIGHUP, 2, None),
    (signal.SIGUSR1, 3, 1),
    (signal.SIGTERM, 3, 2),
    (signal.SIGTERM, 2, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "world", "rank"), SIGNALLED)
def test_a_signal_to_any_one_rank_stops_all_at_the_same_step(
    number: signal.Signals, world: int, rank: int | None, command: list[str], tmp_path: Path
) -> None:
    run, flags = (
        tmp_path / "run",
        ["--batch_size", "6", "--micro_batch_size", "1", "--strategy", "fsdp", "--max_steps", "100000"],
    )
    ranks = Ranks([*command, "--run_dir", str(run), *flags], tmp_path / "log", world)
    wait_for_step(run, ranks)
    ranks.signal(number, rank)
    codes = ranks.wait(60)
    assert codes[0] == 75, ranks.said()
    assert set(codes[1:]) <= {0}  # the first rank alone tells (launch.leave)
    status = json.loads((run / "status.json").read_text())
    reason = "a signal to another process" if rank else number.name
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, reason)
    assert "Run the same command to resume" in ranks.said()
    assert step_of(newest_first(run / "checkpoints")[0]) == status["step"] == steps_logged(run)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.2, 0.6, 1.2])
def test_a_signal_before_the_first_step_ends_with_75(delay: float, command: list[str], tmp_path: Path) -> None:
    ranks = Ranks([*command, "--run_dir", str(tmp_path / "run"), "--max_steps", "100000"], tmp_path / "log")
    time.sleep(delay)
    ranks.signal(signal.SIGUSR1)
    codes = ranks.wait(60)
    assert codes in ([75], [-signal.SIGUSR1]), ranks.said()  # the latter: before the command line was read
    assert "Traceback" not in ranks.said()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = Ranks([*command, "--run_dir", str(run), "--max_steps", "100000"], tmp_path / "log")
    wait_for_step(run, ranks)
    for _ in range(2):
        ranks.signal(signal.SIGINT)
        time.sleep(0.01)
    assert ranks.wait(30)[0] in (75, 130)
    assert_all_there(run)


@pytest.mark.slow
def test_all_is_saved_before_the_time_is_up(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = ["--max_steps", "100000", "--checkpoint.every_steps", "100000"]
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 45)}  # 30 of them in reserve
    ranks = Ranks([*command, "--run_dir", str(run), *slow], tmp_path / "log", env=end)
    assert ranks.wait(60) == [75]
    assert time.time() < int(end["SLURM_JOB_END_TIME"])
    assert json.loads((run / "status.json").read_text())["reason"] == "the job's time limit"
    assert Ranks([*command, "--run_dir", str(run), *slow, "--stop_after", "8s"], tmp_path / "log").wait(60) == [75]
    assert json.loads((run / "status.json").read_text())["reason"] == "--stop_after"


# ------------------------------------------------------------------------------------------------ damage


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[0 if file.suffix == ".json" else len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="module")
def stopped(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 11, with checkpoints of steps 10 and 11."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert Ranks([*command, "--run_dir", str(run), "--stop_after", "11steps"], run.with_name("log")).wait() == [75]
    return run


NAMES = ["shard-00000.safetensors", "state.json", "manifest.json", "model/config.json"]
DAMAGES = [truncate, flip, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_of_damaged_checkpoints_the_one_before_is_the_newest_good_one(
    name: str, damage: Callable[[Path], None], stopped: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(stopped / "checkpoints", tmp_path / "checkpoints")
    damage(folder / "step-000011" / name)
    said: list[str] = []
    assert set_damaged_aside(folder, said.append) == folder / "step-000010"
    assert len(said) == 1
    assert "is damaged (" in said[0]
    assert (folder / "step-000011.corrupt").is_dir()
    assert set_damaged_aside(folder, said.append) == folder / "step-000010"
    assert len(said) == 1


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    stopped: Path, straight: Path, command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    flip(run / "checkpoints/step-000011" / NAMES[0])
    ranks = Ranks([*command, "--run_dir", str(run)], tmp_path / "log")
    assert ranks.wait(90) == [0]
    assert ranks.said().count("is damaged (") == 1
    assert "set aside as step-000011.corrupt" in ranks.said()
    assert "resuming at step 10" in ranks.said()
    assert_alike(run, straight)


@pytest.mark.slow
def test_two_ranks_take_the_checkpoint_that_the_first_has_verified(
    stopped: Path, command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    flip(run / "checkpoints/step-000011/shard-00000.safetensors")
    flags = ["--strategy", "ddp", "--micro_batch_size", "1"]
    ranks = Ranks([*command, "--run_dir", str(run), *flags], tmp_path / "log", 2)
    assert set(ranks.wait(90)) == {0}, ranks.said()
    assert "resuming at step 10" in ranks.said()


def test_a_checkpoint_of_a_newer_version_is_refused_in_a_sentence(
    stopped: Path, command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    checkpoint = run / "checkpoints/step-000011"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"format": 99}))
    write_manifest(checkpoint, {})
    ranks = Ranks([*command, "--run_dir", str(run)], tmp_path / "log")
    assert ranks.wait() == [2]
    assert "written by a newer sslm (format 99); upgrade to resume" in ranks.said()
    assert checkpoint.is_dir()  # not set aside: it is sound


class Malice:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_checkpoint_is_run(stopped: Path, command: list[str], tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(stopped, run)
    checkpoint = run / "checkpoints/step-000011"
    evil = pickle.dumps(Malice(mark))
    for name in (
        ".metadata",
        "optimizer.pt",
        "pytorch_model.bin",
        "model/pytorch_model.bin",
        "model/training_args.bin",
        "state.pkl",
    ):
        (checkpoint / name).write_bytes(evil)
    config = json.loads((checkpoint / "model/config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    (checkpoint / "model/config.json").write_text(json.dumps(config))
    (checkpoint / "model/evil.py").write_text(f"import os\nos.system('touch {mark}')\nclass Evil: pass\n")
    shutil.copy(checkpoint / "state.json", tmp_path)
    write_manifest(checkpoint, {})  # as one who means harm would
    Ranks([*command, "--run_dir", str(run), "--stop_after", "1steps"], tmp_path / "log").wait()
    from sslm.cli import ckpt, export

    export.main([str(checkpoint), "--out", str(tmp_path / "export")])
    ckpt.main(["verify", str(run)])
    ckpt.main(["diff", str(checkpoint), str(run / "checkpoints/step-000010")])
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists()  # it would have


def test_nothing_of_ours_unpickles() -> None:
    for file in Path(checkpoints.__file__).parent.parent.rglob("*.py"):
        source = file.read_text()
        for word in (
            "pickle.load",
            "torch.load",
            "all_gather_object",
            "broadcast_object",
            "allow_pickle=True",
            "joblib",
            "dill",
        ):
            assert word not in source, f"{file} has {word}"


# ----------------------------------------------------------------------------------------------- disks, clocks, folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_disk_that_fills_up_in_mid_run_loses_nothing(
    world: int, small_disk: Path, command: list[str], tmp_path: Path
) -> None:
    run = small_disk / "run"
    flags = ["--run_dir", str(run), "--max_steps", "60", "--checkpoint.keep_last", "100"]
    flags += ["--strategy", "ddp", "--micro_batch_size", "1"] if world > 1 else []
    ranks = Ranks([*command, *flags], tmp_path / "log", world)
    codes = ranks.wait(120)
    assert codes[0] == 2, ranks.said()
    assert "the disk is full" in ranks.said()
    assert world > 1 or "Traceback" not in ranks.said()
    assert_all_there(run)
    assert len(newest_first(run / "checkpoints")) > 2
    assert not list((run / "checkpoints").glob(".step-*"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert set(Ranks([*command, *flags], tmp_path / "log", world).wait(120)) == {0}


@pytest.mark.slow
def test_a_read_only_folder_is_told_of_in_a_sentence(small_disk: Path, command: list[str], tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ranks = Ranks([*command, "--run_dir", str(small_disk / "run")], tmp_path / "log")
    assert ranks.wait() == [2]
    errors = [line for line in ranks.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(small_disk) in errors[0]
    assert "Traceback" not in ranks.said()


def set_clock_back() -> None:
    """By a day, a second from now."""
    began, real = time.monotonic(), time.time
    time.time = lambda: real() - 86400 * (time.monotonic() - began > 1)


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(command: list[str], straight: Path, tmp_path: Path) -> None:
    for stop in (["--stop_after", "13steps"], []):
        arguments = [*command, "--run_dir", str(tmp_path / "run"), *stop]
        done = train_forked(arguments, tmp_path / "log", before=set_clock_back)
        assert done.returncode == (75 if stop else 0), done.stdout
    assert_alike(tmp_path / "run", straight)


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_and_the_lock_dies_with_its_owner(
    command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*command, "--run_dir", str(run)]
    first = Ranks([*arguments, "--max_steps", "100000"], tmp_path / "first")
    wait_for_step(run, first)
    second = Ranks([*arguments, "--max_steps", "100000"], tmp_path / "second")
    assert second.wait() == [2]
    assert "another process is training" in second.said()
    assert first.is_alive()
    first.signal(signal.SIGKILL)
    first.wait()
    assert Ranks([*arguments, "--max_steps", "100000", "--stop_after", "1steps"], tmp_path / "third").wait() == [75]


# ------------------------------------------------------------------------------------------------ errors, elsewhere


@pytest.mark.slow
def test_an_error_saves_what_was_trained_since_the_last_checkpoint(
    command: list[str], straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (other := tmp_path / "other.txt").write_text("to be measured on\n")
    flags = ["--checkpoint.every_steps", "1000", "--eval_every", "5", "--eval_data", str(other)]
    ranks = Ranks([*command, "--run_dir", str(run), *flags], tmp_path / "log")
    wait_for_step(run, ranks, 4)
    other.unlink()  # the next evaluation falls over this
    assert ranks.wait(60) != [0]
    assert "before this error" in ranks.said()
    assert step_of(newest_first(run / "checkpoints")[0]) >= 4
    assert Ranks([*command, "--run_dir", str(run), "--checkpoint.every_steps", str(EVERY)], tmp_path / "log").wait(
        90
    ) == [0]
    assert losses_of(run) == losses_of(straight)
    assert val_of(run) == val_of(straight)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_fresh_machine_goes_on_from_what_was_uploaded(
    world: int, command: list[str], straight: Path, tmp_path: Path
) -> None:
    flags = ["--checkpoint.upload", str(tmp_path / "there")]
    assert Ranks(
        [*command, "--run_dir", str(tmp_path / "here"), "--stop_after", "13steps", *flags], tmp_path / "log"
    ).wait() == [75]
    shutil.rmtree(tmp_path / "here")
    flags += ["--strategy", "ddp", "--micro_batch_size", "2"] if world > 1 else []
    ranks = Ranks([*command, "--run_dir", str(tmp_path / "again"), *flags], tmp_path / "log", world)
    assert set(ranks.wait(90)) == {0}, ranks.said()
    assert "resuming at step 13" in ranks.said()
    assert losses_of(tmp_path / "again") == pytest.approx(losses_of(straight), abs=1e-6)
    if world == 1:
        assert_alike(tmp_path / "again", straight)
