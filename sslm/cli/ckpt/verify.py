"""sslm ckpt verify: whether a checkpoint's files are those that were written. Nothing is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sslm.runs.checkpoints.folder import (
    NewerFormat,
    change_of,
    damage_of,
    files_of,
    read_manifest,
    read_state,
    shards_of,
)
from sslm.runs.checkpoints.shards import index
from sslm.system.errors import UserError, printable
from sslm.system.terminal import bytes_in_words


class Verdict(NamedTuple):
    damage: list[str]
    in_words: str


def verify(checkpoint: Path, done: Callable[[int], None]) -> Verdict:
    """Read every file, and check state.json and the shards' headers.

    Args:
        done: told of bytes read; bytes_of(checkpoint) in all.
    """
    files = [str(file.relative_to(checkpoint)) for file in files_of(checkpoint)]
    try:
        manifest = read_manifest(checkpoint)
    except UserError as error:
        damage = [_without_path(error, checkpoint)]
        return Verdict(damage, f"DAMAGED: {damage[0]}")
    changes = {name: change_of(checkpoint / name, written, done=done) for name, written in manifest.items()}
    damage = [f"{printable(name)} {change}" for name, change in changes.items() if change]
    unknown = [name for name in files if name not in manifest and name != "manifest.json"]
    damage = damage or _damaged_contents(checkpoint, unknown)
    if damage and not checkpoint.exists():
        return Verdict([], "was removed while it was read")  # by its run
    beside = f"; not in its manifest: {', '.join(map(printable, unknown))}" if unknown else ""
    num_bytes = sum(written.num_bytes for written in manifest.values())
    good = f"good ({len(manifest) + 1} files, {bytes_in_words(num_bytes)})"
    return Verdict(damage, (f"DAMAGED: {'; '.join(damage)}" if damage else good) + beside)


def bytes_of(checkpoint: Path) -> int:
    """Return how many bytes `verify` will read."""
    try:
        manifest = read_manifest(checkpoint)
    except UserError:
        return 0
    unchanged = (w for name, w in manifest.items() if not change_of(checkpoint / name, w, hashed=False))
    return sum(written.num_bytes for written in unchanged)


def _damaged_contents(checkpoint: Path, unknown: list[str]) -> list[str]:
    """Say what is wrong with files that are as they were written: readers also take shards beside the manifest."""
    if damage := damage_of(checkpoint, hashed=False):
        return [damage]
    try:
        read_state(checkpoint)
        has_tensors = bool(index(checkpoint))
    except NewerFormat:
        return []
    except UserError as error:
        return [_without_path(error, checkpoint)]
    needed = {"state.json", *(shard.name for shard in shards_of(checkpoint))}
    wrong = [f"{printable(name)} is not in its manifest" for name in unknown if name in needed]
    return wrong if has_tensors else [*wrong, "there are no tensors"]


def _without_path(error: UserError, checkpoint: Path) -> str:
    return str(error).removeprefix(f"{checkpoint}: ").removeprefix(f"{checkpoint}/")
