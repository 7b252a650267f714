"""Download a run's checkpoints from where `mirror` uploaded them, to a machine that has none.

    URL/
      config.yaml, metrics.jsonl …             the run's small files, as of the last upload
      checkpoints/step-000100/manifest.json    a checkpoint without it is not there
      checkpoints/latest                       names the last one uploaded; for people, nobody here goes by it

What arrives is not trusted: names stay inside the folder, every file is verified before the checkpoint gets its name,
and nothing is unpickled.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sslm.runs.checkpoints.folder import UNREADABLE, Manifest, damage_of, number_of, read_manifest
from sslm.runs.checkpoints.transaction import part_of, seal, set_damaged_aside
from sslm.system.errors import UserError, without_secrets
from sslm.system.files import fsync, write_atomically
from sslm.system.remote_folder import RemoteFolder
from sslm.system.terminal import transfer_progress

BESIDE = (
    "config.yaml",
    "metrics.jsonl",
    "amendments.jsonl",
    "changes.jsonl",
    "anomalies.jsonl",
    "wandb_id",
    "micro_batch_size.json",
)
"""Files of a run that go with its checkpoints."""
MANIFEST_BYTES = 64 << 20
"""Longest manifest that is downloaded."""
NUM_THREADS = 4
"""Download threads."""


def fetch(url: str, run: Path, tell: Callable[[str], None]) -> Path | None:
    """Download the newest whole checkpoint of a mirror and return it, or None if the newest whole one here is as new.

    A checkpoint that is damaged there is told of and set aside (its manifest is renamed), and the one before is tried.
    Files of the run that are missing here come too. The caller holds the run folder.

    Raises:
        UserError: not permitted, or the server stayed away.
        OSError: the disk is full.
    """
    folder = run / "checkpoints"
    with contextlib.closing(RemoteFolder(url)) as server:
        there = server.files("checkpoints")
        complete = _complete(there)
        newest = set_damaged_aside(folder, tell) if complete else None
        for checkpoint in (folder / name for name in complete):
            if newest is not None and number_of(checkpoint) <= number_of(newest):
                break
            if not (damage := _bring(server, there, checkpoint)):
                return checkpoint
            tell(f"{without_secrets(url)}/checkpoints/{checkpoint.name} is damaged ({damage}): set aside there")
            with contextlib.suppress(Exception):  # it may be read-only
                _set_aside(server, f"checkpoints/{checkpoint.name}")
    return None


def newest_remote(url: str) -> tuple[int | None, bytes | None]:
    """Return the step of the newest complete checkpoint there, and the run's config.yaml; None for what is missing."""
    config = None
    with contextlib.closing(RemoteFolder(url)) as server:
        newest = next((number_of(Path(name)) for name in _complete(server.files("checkpoints"))), None)
        with contextlib.suppress(FileNotFoundError):
            config = b"".join(server.chunks("config.yaml"))
    return newest, config


def newest_remote_state(url: str) -> dict[str, Any]:
    """Return what state.json of the newest complete checkpoint there says; nothing if it can't be read."""
    with contextlib.closing(RemoteFolder(url)) as server, contextlib.suppress(*UNREADABLE):
        for name in _complete(server.files("checkpoints")):
            state = json.loads(b"".join(server.chunks(f"checkpoints/{name}/state.json")))
            return state if isinstance(state, dict) else {}
    return {}


def _complete(there: dict[str, int]) -> list[str]:
    """Names of the checkpoints that are whole there, newest first."""
    names = (name for name in steps_in(there) if f"checkpoints/{name}/manifest.json" in there)
    return sorted(names, key=lambda name: number_of(Path(name)), reverse=True)


def _bring(server: RemoteFolder, there: dict[str, int], final: Path) -> str:
    """Download a checkpoint to its place. Returns what is wrong with it, if anything; then nothing of it is here."""
    part, folder = part_of(final), f"checkpoints/{final.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        try:
            (part / "manifest.json").write_bytes(b"".join(server.chunks(f"{folder}/manifest.json", MANIFEST_BYTES)))
        except FileNotFoundError:
            return "manifest.json has gone meanwhile"
        try:
            manifest = read_manifest(part)
        except UserError as error:
            return str(error).removeprefix(f"{part}: ")
        damage = _bring_files(server, there, folder, part, manifest)
        damage = damage or damage_of(part, hashed=False)
        if not damage:
            _bring_beside(server, final.parent.parent)
            (part / "manifest.json").unlink()  # seal writes it
            seal(part, final, manifest)
        return damage
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _bring_files(server: RemoteFolder, there: dict[str, int], folder: str, part: Path, manifest: Manifest) -> str:
    """Download a checkpoint's files, some at a time. Returns what is wrong with the first wrong one, if any."""
    for name, was in manifest.items():
        if (num_bytes := there.get(f"{folder}/{name}")) != was.num_bytes:
            return f"{name} is missing" if num_bytes is None else f"{name} has {num_bytes} bytes, not {was.num_bytes}"

    def bring(name: str) -> str:
        file, was = part / name, manifest[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as stream:
            wrong = server.download(f"{folder}/{name}", was.num_bytes, was.sha256, stream, came)
        fsync(file)
        return f"{name}: {wrong}" if wrong else ""

    total = sum(was.num_bytes for was in manifest.values())
    with transfer_progress(f"Downloading {part.name[1:-4]}", total) as came, ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            return next(filter(None, pool.map(bring, manifest)), "")
        except FileNotFoundError as error:
            return f"a file has gone meanwhile: {error}"
        except BaseException:
            server.close()  # what still comes ends soon
            raise


def _bring_beside(server: RemoteFolder, run: Path) -> None:
    """Download the run's small files that are missing here; of a log keep the longer one."""
    for name in BESIDE:
        here = run / name
        if here.exists() and here.suffix != ".jsonl":
            continue
        with contextlib.suppress(FileNotFoundError):
            data = b"".join(server.chunks(name))
            if not here.exists() or len(data) > here.stat().st_size:
                write_atomically(here, data.decode(errors="replace"))


def _set_aside(server: RemoteFolder, folder: str) -> None:
    """Rename a checkpoint's manifest there, so that the checkpoint is uploaded again once it is made again."""
    server.write(f"{folder}/manifest.json.corrupt", b"".join(server.chunks(f"{folder}/manifest.json", MANIFEST_BYTES)))
    server.remove(f"{folder}/manifest.json")


def steps_in(there: dict[str, int]) -> set[str]:
    """Return the names of checkpoints of which there is any file."""
    return {found[1] for file in there if (found := re.match(r"checkpoints/(step-\d{1,15})/", file))}
