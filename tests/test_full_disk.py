"""A disk that fills up: one sentence, nothing half-written, and the same command goes on once there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sslm.data.foreign import open_foreign
from sslm.system.errors import sentence_of
from tests.support.processes import run_command, train_forked
from tests.support.runs import losses_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("devices", [1, 2])
def test_full_disk_while_saving(devices: int, small_disk: Path, tiny: list[str], tmp_path: Path) -> None:
    run = small_disk / "run"
    command = [*tiny, "--run_dir", str(run), "--devices", str(devices)]
    # under Lightning's launcher one process says it for all
    by_launcher = devices > 1
    done = run_command(["-m", "sslm.train", *command]) if by_launcher else train_forked(command, tmp_path / "log")
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the disk is full" in said[0]
    assert not list((run / "checkpoints").glob("*"))
    assert not (run / "export").exists()
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert train_forked(command, tmp_path / "log").returncode == 0
    assert len(losses_of(run)) == 8


def test_full_disk_while_preparing(small_disk: Path, tiny: list[str], tmp_path: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(200_000))
    command = [*tiny, "--run_dir", str(tmp_path / "run"), "--data.cache_dir", str(small_disk)]
    done = train_forked(command, tmp_path / "log")
    assert done.returncode == 2, done.stdout
    [said] = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in said
    assert done.stdout.endswith(f"{said}\n")
    assert "Traceback" not in done.stdout
    assert not list((small_disk / "corpora").iterdir())
    assert not (tmp_path / "run").exists()


def test_full_disk_while_copying_ids(small_disk: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.full(1_000_000, 9))
    with pytest.raises(OSError, match="No space") as caught:
        open_foreign(tmp_path / "ids.npy", small_disk)
    assert "the disk is full" in str(sentence_of(caught.value))
    assert not list((small_disk / "corpora").iterdir())
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert open_foreign(tmp_path / "ids.npy", small_disk).num_tokens == 1_000_000
