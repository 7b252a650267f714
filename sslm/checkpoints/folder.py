"""What lies on the disk. A checkpoint is a transaction: written beside, checksummed, synced, renamed; `latest` comes last."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sslm.errors import UserError
from sslm.files import fsync, sha256_of, write_atomically

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


def newest_good(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; others on the way are renamed, and told of."""
    for checkpoint in found(folder):
        if not (damage := damage_of(checkpoint)):
            return checkpoint
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


def seal(part: Path, final: Path, known: Manifest) -> None:
    """Manifest, fsync, rename, `latest`: in this order, so that what has its final name is whole.

    Args:
        known: files that were synced and checksummed by those who wrote them.
    """
    write_manifest(part, known)
    remove(final)
    os.rename(part, final)
    fsync(final.parent)
    write_atomically(final.parent / "latest", final.name + "\n")


def write_manifest(folder: Path, known: Manifest) -> None:
    """Of all files in a folder, which are on the disk afterwards."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    manifest = {name: known.get(name) or entry_of(file) for name, file in files.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    new = [file for name, file in files.items() if name not in known]
    for path in [*new, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync(path)


def entry_of(file: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away. It loses its name first: one that has its name is whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    if checkpoint.exists():
        checkpoint.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for left_over in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
        shutil.rmtree(left_over, ignore_errors=True)
