"""about.json: with what a run was last trained: versions, the code's state in git, machine, text and tokenizer."""

import json
import platform
import subprocess
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sslm
from sslm.runs.folder import RunFolder
from sslm.system.files import write_atomically

PACKAGES = ("torch", "transformers", "lightning", "tokenizers", "numpy")
GIT_SECONDS = 5.0
"""A working directory on a slow network disk is not worth waiting for."""


def write_about(
    run: RunFolder, fingerprint: dict[str, Any], cleaned: dict[str, Any], device: str, num_devices: int
) -> None:
    """Write about.json.

    Args:
        fingerprint: of the run's data, as checkpoints keep it.
        cleaned: how the text of each source was cleaned, if it was.
        device: name of the kind of device that it is trained on.
    """
    about = {
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "hardware": {"host": platform.node(), "system": platform.platform(), "device": device, "devices": num_devices},
        "data": {name: short_fingerprint(of) for name, of in fingerprint.get("sources", {}).items()},
        "cleaned": cleaned,
    }
    write_atomically(run.about, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def known_about(run: RunFolder) -> dict[str, Any]:
    """Return what about.json says, or nothing if it is not there or damaged."""
    try:
        about = json.loads(run.about.read_bytes()) if run.about.is_file() else {}  # a pipe would never end
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def versions() -> dict[str, str]:
    """Return the versions of Python, sslm and what it stands on."""
    found = {"python": platform.python_version(), "sslm": sslm.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a folder's working tree, and whether a file that git knows differs from it.

    None if it is in no git repository, has no commit yet, or git is not there or too slow.
    """
    try:
        commit, changes = (_git(folder, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *words]  # runs no hook
    done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    return done.stdout.strip()


def short_fingerprint(source: dict[str, Any]) -> dict[str, Any]:
    """Shorten the fingerprint of a source of text, which names each of its shards, to a digest and its tokenizer's."""
    digest = sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return {"sha256": digest, "tokenizer": source.get("tokenizer"), "windows": source.get("num_windows")}
