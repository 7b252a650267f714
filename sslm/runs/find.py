"""What a path on the command line means, and what is read of a checkpoint beside its tensors."""

import re
from pathlib import Path

from sslm.runs import checkpoints
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.terminal import say

LEFT_OVER = re.compile(r"\.step-\d+.*\.(tmp|old)")
"""What a killed process leaves of a checkpoint it was writing (.tmp) or removing (.old)."""


def is_checkpoint(path: Path) -> bool:
    has_files = (path / "manifest.json").is_file() or (path / "state.json").is_file()
    return has_files or (path.is_dir() and re.fullmatch(r"step-\d+(\.corrupt)?", path.name) is not None)


def folder_of(given: str | Path) -> Path:
    """A run folder, or a folder of checkpoints -> the folder of checkpoints.

    Raises:
        UserError: it is neither.
    """
    path = Path(given)
    inside = RunFolder(path).checkpoints
    if inside.is_dir():
        return inside
    if path.is_dir() and any(is_checkpoint(one) or LEFT_OVER.fullmatch(one.name) for one in path.iterdir()):
        return path
    raise UserError(f"{given}: neither a run folder with checkpoints, nor a folder of checkpoints")


def checkpoints_in(given: str | Path) -> list[Path]:
    """A checkpoint -> itself; a run folder or a folder of checkpoints -> all of them, oldest first.

    Raises:
        UserError: there is none.
    """
    if is_checkpoint(Path(given)):
        return [Path(given)]
    if found := checkpoints.found(folder_of(given)):
        return found[::-1]
    raise UserError(f"{given}: has no checkpoint yet")


def one_checkpoint(given: str | Path) -> Path:
    """A checkpoint -> itself; a run folder or a folder of checkpoints -> the newest.

    Raises:
        UserError: there is none.
    """
    return checkpoints_in(given)[-1]


def find_checkpoint(given: str | Path) -> Path:
    """Find the checkpoint that a path means: itself, or the newest whole checkpoint of a run folder.

    Nothing is renamed: damaged checkpoints are skipped, and the screen says so.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    path = Path(given)
    if (path / "manifest.json").is_file() or (path / "state.json").is_file():
        if damage := checkpoints.damage_of(path):
            raise UserError(f"{path}: this checkpoint is damaged ({damage}); take another of its run")
        return path
    run = RunFolder(path)
    newest = checkpoints.newest_good(run.checkpoints, say, set_aside=False) if run.checkpoints.is_dir() else None
    if newest is None:
        raise UserError(f"{given}: neither a run folder with a checkpoint, nor a checkpoint")
    return newest
