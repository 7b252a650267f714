"""sslm ckpt verify: whether a checkpoint's files are those that were written. Nothing is changed, nothing renamed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslm.runs import checkpoints
from sslm.runs.checkpoints.folder import NONSENSE, Written, files_of, manifest_of, shards_of
from sslm.runs.checkpoints.shards import index
from sslm.system.errors import UserError
from sslm.system.tables import printable, size

READ_BYTES = 4 << 20
NEEDED = {"format", "step", "position", "fingerprint"}
"""Keys of state.json without which no run goes on."""


@dataclass(frozen=True)
class Verdict:
    checkpoint: Path
    num_files: int
    num_bytes: int
    damage: list[str]
    unknown: list[str]
    """Files that the manifest does not name."""
    is_gone: bool = False
    """The run has removed it meanwhile."""

    @property
    def line(self) -> str:
        if self.is_gone:
            return f"{printable(str(self.checkpoint))}: was removed while it was read"
        verdict = (
            f"DAMAGED: {'; '.join(self.damage)}"
            if self.damage
            else f"good ({self.num_files} files, {size(self.num_bytes)})"
        )
        unknown = f"; not in its manifest: {', '.join(map(printable, self.unknown))}" if self.unknown else ""
        return f"{printable(str(self.checkpoint))}: {verdict}{unknown}"


def verify(checkpoint: Path, done: Callable[[int], None]) -> Verdict:
    """Read every file, and what state.json and the headers of the shards say.

    Args:
        done: told of bytes read; bytes_of(checkpoint) in all.
    """
    there = [str(file.relative_to(checkpoint)) for file in files_of(checkpoint)]
    try:
        manifest = manifest_of(checkpoint)
    except UserError as error:
        return Verdict(checkpoint, len(there), 0, [_said(error, checkpoint)], [])
    changed = {name: what for name, was in manifest.items() if (what := _change(checkpoint / name, was, done))}
    damage = [f"{printable(name)} {what}" for name, what in changed.items()]
    unknown = [name for name in there if name not in manifest and name != "manifest.json"]
    if not changed:
        damage = _contents(checkpoint, unknown)
    if damage and not checkpoint.exists():
        return Verdict(checkpoint, 0, 0, [], [], is_gone=True)
    return Verdict(checkpoint, len(manifest) + 1, sum(was.num_bytes for was in manifest.values()), damage, unknown)


def bytes_of(checkpoint: Path) -> int:
    """How many bytes `verify` will read."""
    try:
        manifest = manifest_of(checkpoint)
    except UserError:
        return 0
    return sum(was.num_bytes for name, was in manifest.items() if _has_size(checkpoint / name, was))


def _has_size(file: Path, was: Written) -> bool:
    return file.is_file() and file.stat().st_size == was.num_bytes


def _change(file: Path, was: Written, done: Callable[[int], None]) -> str:
    """What happened to a file since it was written; empty: nothing."""
    if not file.is_file():
        return "is missing"
    if not _has_size(file, was):
        return f"has {file.stat().st_size} bytes instead of {was.num_bytes}"
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
            done(len(block))
    return "" if digest.hexdigest() == was.sha256 else "has changed"


def _contents(checkpoint: Path, unknown: list[str]) -> list[str]:
    """What is wrong with files that are as they were written; readers would take shards that the manifest does not name too."""
    needed = {"state.json", *(shard.name for shard in shards_of(checkpoint))}
    try:
        lacking = NEEDED - checkpoints.read_state(checkpoint).keys()
    except UserError:  # sound, but of a newer format: whoever reads it will say so
        return []
    except NONSENSE:
        return ["no sound state.json"]
    try:
        tensors = index(checkpoint)
    except UserError as error:
        return [_said(error, checkpoint)]
    wrong = [f"{printable(name)} is not in its manifest" for name in unknown if name in needed]
    wrong += [f"state.json lacks {', '.join(sorted(lacking))}"] if lacking else []
    return wrong if tensors else [*wrong, "there are no tensors"]


def _said(error: UserError, checkpoint: Path) -> str:
    """The sentence without the path that the line begins with."""
    return str(error).removeprefix(f"{checkpoint}: ").removeprefix(f"{checkpoint}/")
