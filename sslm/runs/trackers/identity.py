"""Who a run is to trackers, and what they are told of it beside its rows."""

import json
import os
import re
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.system.errors import without_secrets
from sslm.system.files import write_atomically


def known_id(run: RunFolder) -> str | None:
    """Return the id of this run at its trackers, or None if it was never at any, or the file is damaged."""
    text = run.wandb_id.read_bytes().decode(errors="replace") if run.wandb_id.is_file() else ""
    return text if _is_id(text) else None


def id_of(run: RunFolder) -> str:
    """Return the id of this run at its trackers, the same for all times; it is made when first asked for."""
    if (known := known_id(run)) is None:
        write_atomically(run.wandb_id, known := os.urandom(4).hex())
    return known


def restore_id(run: RunFolder, known: object) -> None:
    """Go on at trackers as the run that a checkpoint names, if the run folder does not name one."""
    if known_id(run) is None and isinstance(known, str) and _is_id(known):
        write_atomically(run.wandb_id, known)


def _is_id(text: str) -> bool:
    """Whether a text may be an id: it stands in names of folders and in questions to servers."""
    return re.fullmatch(r"\w{1,64}", text, re.ASCII) is not None


def name_of(run: RunFolder) -> str:
    """Name of the run folder, by which people know the run."""
    return run.path.resolve().name


def pictures_of(run: RunFolder) -> list[Path]:
    """Return the pictures that a run has drawn of itself: its curves, and of a fine-tuned model its predictions."""
    return [file for file in (run.curves, run.predicted) if file.is_file()]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings of a tree that are set, as texts by their dotted names.

    >>> flat({"seed": 0, "optim": {"lr": 0.001, "decay": None}})
    {'seed': '0', 'optim.lr': '0.001'}
    """
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = without_secrets(value if isinstance(value, str) else json.dumps(value))
    return found
