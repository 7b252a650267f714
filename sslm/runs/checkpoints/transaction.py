"""How checkpoints come and go: written beside, checksummed, synced, renamed; `latest` comes last."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sslm.runs.checkpoints.folder import Manifest, Written, damage_of, files_of, newest_first
from sslm.system.files import fsync, sha256_of, write_atomically


def part_of(final: Path) -> Path:
    """Return where a checkpoint is written before it has its name."""
    return final.with_name(f".{final.name}.tmp")


def seal(part: Path, final: Path, known: Manifest) -> None:
    """Write the manifest, sync, rename, write `latest`: in this order, so that what has its final name is whole.

    The files that are `known` were synced and checksummed by those who wrote them.
    """
    write_manifest(part, known)
    remove_checkpoint(final)
    os.rename(part, final)
    fsync(final.parent)
    write_atomically(final.parent / "latest", final.name + "\n")


def write_manifest(folder: Path, known: Manifest) -> None:
    """Write the manifest of all files in a folder; they are on the disk afterwards."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {str(file.relative_to(folder)): file for file in files_of(folder)}
    manifest = {name: known.get(name) or written(file) for name, file in files.items()}
    entries = {name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in manifest.items()}
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1) + "\n")
    new = [file for name, file in files.items() if name not in known]
    for path in [*new, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync(path)


def written(file: Path) -> Written:
    """Measure a file for the manifest."""
    return Written(file.stat().st_size, sha256_of(file))


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint. It loses its name first: one that has its name is whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    if checkpoint.exists():
        checkpoint.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def set_damaged_aside(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Rename the damaged checkpoints that are newer than the newest whole one, and return that one, or None.

    Only the run that the folder belongs to may. `tell` is told of each damaged checkpoint.
    """
    for checkpoint in newest_first(folder):
        if not (damage := damage_of(checkpoint)):
            return checkpoint
        aside = checkpoint.with_name(f"{checkpoint.name}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        tell(f"{checkpoint} is damaged ({damage}): set aside as {aside.name}")
    return None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for left_over in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
        shutil.rmtree(left_over, ignore_errors=True)
