"""Which checkpoints a path on the command line means. Nothing here writes."""

import re
from pathlib import Path

from sslm.runs.checkpoints.folder import damage_of, newest_first, newest_whole
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.terminal import say

LEFT_OVER = re.compile(r"\.step-\d+.*\.(tmp|old)")
"""Name of what a killed process leaves of a checkpoint it was writing (.tmp) or removing (.old)."""


def is_checkpoint(path: Path) -> bool:
    return _has_files(path) or (path.is_dir() and re.fullmatch(r"step-\d+(\.corrupt)?", path.name) is not None)


def _has_files(path: Path) -> bool:
    return (path / "manifest.json").is_file() or (path / "state.json").is_file()


def folder_of(path: str | Path) -> Path:
    """Return the folder of checkpoints that a path means: a run folder's, or itself; a UserError if it is neither."""
    inside = RunFolder(Path(path)).checkpoints
    if inside.is_dir():
        return inside
    if Path(path).is_dir() and any(is_checkpoint(p) or LEFT_OVER.fullmatch(p.name) for p in Path(path).iterdir()):
        return Path(path)
    raise UserError(f"{path}: neither a run folder with checkpoints, nor a folder of checkpoints")


def checkpoints_in(path: str | Path) -> list[Path]:
    """Return the checkpoints that a path means: itself, or all in a folder, oldest first; a UserError if none is."""
    if is_checkpoint(Path(path)):
        return [Path(path)]
    if checkpoints := newest_first(folder_of(path)):
        return checkpoints[::-1]
    raise UserError(f"{path}: has no checkpoint yet")


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint that a path means: itself, or the newest whole one of a run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if _has_files(Path(path)):
        if damage := damage_of(Path(path)):
            raise UserError(f"{path}: this checkpoint is damaged ({damage}); take another of its run")
        return Path(path)
    newest = newest_whole(RunFolder(Path(path)).checkpoints, say)
    if newest is None:
        raise UserError(f"{path}: neither a run folder with a checkpoint, nor a checkpoint")
    return newest
