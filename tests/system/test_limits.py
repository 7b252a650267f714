"""The system's limits are met with a sentence, not with a run that waits for ever."""

import errno
import resource
from pathlib import Path

import pytest

from sslm.system.errors import sentence_of
from sslm.train import main
from tests.support.processes import train_forked


def train_with_few_files(arguments: list[str]) -> int:
    """Train where 24 files may be open at once."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    return main(arguments)


@pytest.mark.parametrize("flags", [["--devices", "2", "--strategy", "ddp"], ["--data.num_workers", "2"]])
def test_few_open_files_are_refused_before_ranks_wait_for_each_other(
    flags: list[str], tiny: list[str], tmp_path: Path
) -> None:
    done = train_forked([*tiny, "--run_dir", str(tmp_path / "r"), *flags], tmp_path / "log", verb=train_with_few_files)
    assert done.returncode == 2, done.stdout
    assert "error: only 24 files may be open at once" in done.stdout
    assert "ulimit -n 4096" in done.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files", "/x"), "raise the limit (ulimit -n 4096"),
        (RuntimeError("can't start new thread"), "the system starts no more threads"),
        (OSError(errno.EIO, "Input/output error", "/data/x.bin"), "/data/x.bin: the disk, or the server behind it"),
    ],
)
def test_limits_and_failing_disks_are_said_in_a_sentence(error: Exception, words: str) -> None:
    assert words in str(sentence_of(error))
