"""What a path on the command line means, and what is read of a checkpoint beside its tensors."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from sslm import checkpoints
from sslm.checkpoints.folder import read_manifest
from sslm.ckpt.show import shown
from sslm.errors import UserError
from sslm.runs import RunFolder

LEFT_OVER = re.compile(r"\.step-\d+.*\.(tmp|old)")
"""What a killed process leaves of a checkpoint it was writing (.tmp) or removing (.old)."""

NONSENSE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What reading a JSON file of any contents may raise; RuntimeError: nested too deep, links in a circle."""


class Written(NamedTuple):
    """A file as the manifest says it was written."""

    num_bytes: int
    sha256: str


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


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json.

    Raises:
        UserError: it can't be read, or is of a newer format.
    """
    try:
        return checkpoints.read_state(checkpoint)
    except UserError:
        raise
    except NONSENSE:
        raise UserError(f"{checkpoint}: no sound state.json") from None


def manifest_of(checkpoint: Path) -> dict[str, Written]:
    """What the manifest says of each file.

    Raises:
        UserError: it can't be read, or names files outside of the checkpoint.
    """
    try:
        manifest = read_manifest(checkpoint)
        return {name: Written(was["bytes"], was["sha256"]) for name, was in manifest.items()}
    except NONSENSE as error:
        why = f" ({shown(str(error))})" if "outside" in str(error) else ""
        raise UserError(f"{checkpoint}: no sound manifest.json{why}") from None


def shards_of(checkpoint: Path) -> list[Path]:
    """The files that hold its tensors."""
    return sorted(file for file in checkpoint.glob("*.safetensors") if file.is_file())


def files_of(checkpoint: Path) -> list[Path]:
    """All files there are."""
    return sorted(file for file in checkpoint.rglob("*") if file.is_file())
