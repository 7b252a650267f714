"""How a checkpoint comes and goes: written beside, checksummed, synced, renamed; `latest` comes last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from sslm.runs.checkpoints.folder import Manifest
from sslm.system.files import fsync, sha256_of, write_atomically


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
