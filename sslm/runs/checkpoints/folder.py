"""What lies in a folder of checkpoints, and whether it is as it was written. `transaction` writes."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sslm.system.errors import UserError, printable, short
from sslm.system.files import is_plain_path, is_sha256, is_size

FORMAT = 1
NEEDED = {"format", "step", "position", "fingerprint"}
"""Keys of state.json without which no run goes on."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What reading JSON of any contents may raise; RuntimeError: nested too deep, links in a circle."""
READ_BYTES = 4 << 20


class NewerFormat(UserError):
    """A newer sslm wrote the checkpoint."""


class Written(NamedTuple):
    """A file as it was written."""

    num_bytes: int
    sha256: str


Manifest = dict[str, Written]
"""Path in the checkpoint -> file."""


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def number_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """List the checkpoints in a folder."""
    paths = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in paths if re.fullmatch(r"step-\d+", path.name)), key=number_of, reverse=True)


def latest_in(folder: Path) -> str | None:
    """Return the name in `latest`, or None if there is none."""
    latest = folder / "latest"
    return latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else None


def shards_of(checkpoint: Path) -> list[Path]:
    """List the files that hold tensors."""
    return sorted(file for file in checkpoint.glob("*.safetensors") if file.is_file())


def files_of(checkpoint: Path) -> list[Path]:
    """List all files, at any depth."""
    return sorted(file for file in checkpoint.rglob("*") if file.is_file())


def read_manifest(checkpoint: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        UserError: it can't be read, or names files outside of the checkpoint.
    """
    try:
        manifest = parse_manifest((checkpoint / "manifest.json").read_bytes())
        inside = checkpoint.resolve()
        if outside := [name for name in manifest if not (checkpoint / name).resolve().is_relative_to(inside)]:
            raise ValueError(f"it names a file outside of the checkpoint: {outside[0]}")
    except UNREADABLE as error:
        raise UserError(f"{checkpoint}: no sound manifest.json ({short(error)})") from None
    return manifest


def parse_manifest(content: bytes) -> Manifest:
    """Parse a manifest that may come from anywhere; raises any of UNREADABLE if it is none."""
    entries = {name: Written(entry["bytes"], entry["sha256"]) for name, entry in json.loads(content).items()}
    for name, file in entries.items():
        folders = {str(folder) for folder in PurePosixPath(name).parents}
        if not is_plain_path(name) or name == "manifest.json" or folders & entries.keys():
            raise ValueError(f"it names a file outside of the checkpoint: {name}")
        if not is_size(file.num_bytes) or not is_sha256(file.sha256):
            raise ValueError(f"no size and checksum of {name}")
    return entries


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json.

    Raises:
        NewerFormat: a newer sslm wrote it.
        UserError: it can't be read.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        is_newer = state["format"] > FORMAT
    except UNREADABLE:
        raise UserError(f"{checkpoint}: no sound state.json") from None
    if is_newer:
        raise NewerFormat(f"{checkpoint}: written by a newer sslm (format {state['format']}); upgrade to resume")
    return state


def step_of(checkpoint: Path | None) -> int:
    """Return the step at which a checkpoint was made, or 0 if there is none."""
    return int(read_state(checkpoint)["step"]) if checkpoint else 0


def change_of(
    file: Path, written: Written, hashed: bool = True, done: Callable[[int], None] = lambda num_bytes: None
) -> str:
    """Say what happened to a file since it was written; empty if nothing did.

    Args:
        hashed: whether to read its contents; its size alone is seen at once.
        done: told of bytes read.
    """
    if not file.is_file():
        return "is missing"
    if (num_bytes := file.stat().st_size) != written.num_bytes:
        return f"has {num_bytes} bytes instead of {written.num_bytes}"
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while hashed and (block := stream.read(READ_BYTES)):
            digest.update(block)
            done(len(block))
    return "has changed" if hashed and digest.hexdigest() != written.sha256 else ""


def damage_of(checkpoint: Path, hashed: bool = True) -> str:
    """Say what is wrong with a checkpoint's files; empty if nothing is. Sizes alone (not `hashed`) are seen at once."""
    try:
        for name, written in read_manifest(checkpoint).items():
            if change := change_of(checkpoint / name, written, hashed):
                return f"{printable(name)} {change}"
        lacking = NEEDED - read_state(checkpoint).keys()
    except NewerFormat:  # sound: whoever goes on from it will say so
        return ""
    except UserError as error:
        return str(error).removeprefix(f"{checkpoint}: ")
    return f"state.json lacks {', '.join(sorted(lacking))}" if lacking else ""


def newest_whole(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Find the newest checkpoint whose files are as they were written, or None; `tell` hears of newer, damaged ones."""
    for checkpoint in newest_first(folder):
        if not (damage := damage_of(checkpoint)):
            return checkpoint
        tell(f"{checkpoint} is damaged ({damage}): skipped")
    return None
