"""What lies on the disk. A checkpoint is a transaction: written beside, checksummed, synced, renamed; `latest` comes last."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sslm.runs import checkpoints
from sslm.system.errors import UserError
from sslm.system.files import sha256_of
from sslm.system.tables import printable

FORMAT = 1

Manifest = dict[str, dict[str, Any]]
"""File -> {"bytes": …, "sha256": …}."""


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    there = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in there if re.fullmatch(r"step-\d+", path.name)), key=number_of, reverse=True)


def number_of(checkpoint: Path) -> int:
    """The step that is in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def part_of(final: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return final.with_name(f".{final.name}.tmp")


def newest_good(folder: Path, tell: Callable[[str], None], set_aside: bool = True) -> Path | None:
    """Find the newest checkpoint whose files are as they were written.

    Args:
        folder: a folder of checkpoints.
        tell: is told of each damaged checkpoint that is newer.
        set_aside: rename damaged checkpoints. Only the run that the folder belongs to may.

    Returns:
        The checkpoint, or None if no checkpoint is whole.
    """
    for checkpoint in found(folder):
        if not (damage := damage_of(checkpoint)):
            return checkpoint
        if not set_aside:
            tell(f"{checkpoint} is damaged ({damage}): skipped")
            continue
        aside = checkpoint.with_name(f"{checkpoint.name}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        tell(f"{checkpoint} is damaged ({damage}): set aside as {aside.name}")
    return None


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises:
    ValueError: it is none, or names files outside of the checkpoint.
    """
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, was in manifest.items():
        if (
            "\\" in name
            or ".." in Path(name).parts
            or not (checkpoint / name).resolve().is_relative_to(checkpoint.resolve())
        ):
            raise ValueError(f"it names a file outside of the checkpoint ({name})")
        if type(was["bytes"]) is not int or not isinstance(was["sha256"], str):
            raise ValueError(f"{name} has no size and checksum")
    return dict(manifest)


def damage_of(checkpoint: Path, hashed: bool = True) -> str:
    """What is wrong with a checkpoint's files; empty: nothing.

    Args:
        hashed: look at their contents too; sizes alone are seen at once.
    """
    try:
        manifest = read_manifest(checkpoint)
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return "no sound manifest.json"
    for name, was in manifest.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != was["bytes"] or (hashed and sha256_of(file) != was["sha256"]):
            return f"{name} has changed"
    try:
        lacking = {"format", "step", "position", "fingerprint"} - read_state(checkpoint).keys()
    except UserError:  # sound, but of a newer format: whoever reads it will say so
        return ""
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "no sound state.json"
    return f"state.json lacks {', '.join(sorted(lacking))}" if lacking else ""


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json.

    Raises:
        UserError: it is of a newer format.
    """
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    if state["format"] > FORMAT:
        raise UserError(f"{checkpoint}: written by a newer sslm (format {state['format']}); upgrade to go on from it")
    return state


def step_of(checkpoint: Path | None) -> int:
    """The step at which a checkpoint was made; 0: there is none."""
    return int(read_state(checkpoint)["step"]) if checkpoint else 0


NONSENSE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What reading a JSON file of any contents may raise; RuntimeError: nested too deep, links in a circle."""


class Written(NamedTuple):
    """A file as the manifest says it was written."""

    num_bytes: int
    sha256: str


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
        why = f" ({printable(str(error))})" if "outside" in str(error) else ""
        raise UserError(f"{checkpoint}: no sound manifest.json{why}") from None


def shards_of(checkpoint: Path) -> list[Path]:
    """The files that hold its tensors."""
    return sorted(file for file in checkpoint.glob("*.safetensors") if file.is_file())


def files_of(checkpoint: Path) -> list[Path]:
    """All files there are."""
    return sorted(file for file in checkpoint.rglob("*") if file.is_file())
