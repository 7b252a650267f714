"""Paths as people type them: `~` and `~user` are followed once, where a setting or an argument is taken.

The shell follows them neither in `--flag=~/x` nor in a file. URLs and names of a hub begin otherwise, and stay.
"""

import argparse
import os
import re
from pathlib import Path

import platformdirs

from sslm.system.errors import UserError, short

_typed: dict[str, str] = {}
"""Path that was followed in this process -> how it was typed."""


class EmptyPath(UserError, argparse.ArgumentTypeError):
    """A variable of the shell that is not set, most often."""


class NoHome(UserError, argparse.ArgumentTypeError):
    """Nobody here has the home folder that a path begins with; argparse quotes this, too."""


def followed(path: str) -> str:
    """Return the path that a typed one means.

    >>> followed("runs/a"), followed("s3://bucket/~x"), followed("~/a") == os.path.join(os.path.expanduser("~"), "a")
    ('runs/a', 's3://bucket/~x', True)

    Raises:
        NoHome: it begins with a home folder that isn't known.
    """
    if not path.startswith("~"):
        return path
    there = os.path.expanduser(path)
    if there.startswith("~"):
        user = path[1:].partition("/")[0]
        why = f"there is no user {short(user)} here" if user else "HOME is not set"
        raise NoHome(f"{short(path)}: {why}; give the whole path (or ./{short(path)}, if it is called so)")
    _typed[there] = path
    return there


def local_path(path: str) -> Path:
    """`followed`, for an argument that is a folder or file of this machine; an empty one is none."""
    if not path:
        raise EmptyPath("the path is empty; give one")
    return Path(followed(path))


def caches() -> Path:
    """Return the user's folder for what can be made again: prepared corpora, what was compiled."""
    return platformdirs.user_cache_path("sslm")


def as_typed(text: str) -> str:
    """Write the paths in a text as they were typed."""
    for there in sorted(_typed, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./~-]){re.escape(there)}(?![\w~-]|\.\w)", _typed[there].replace("\\", r"\\"), text)
    return text
