"""Settings as a YAML file has them, without secrets."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sslm.config import OPEN_SECTIONS, PATHS, Config
from sslm.system.errors import without_secrets
from sslm.system.paths import as_typed
from sslm.system.plain_yaml import dump


def to_tree(config: Config) -> dict[str, Any]:
    """Config -> what a YAML file holds; `parse(["--config", FILE])` gives it back, but for secrets in URLs.

    Paths stand there as they were typed: `~` is the home folder of whoever goes on.
    """
    tree = dataclasses.asdict(config)
    for section in OPEN_SECTIONS:
        tree[section] |= tree[section].pop("settings")
    written: dict[str, Any] = at_paths(cleaned(tree), as_typed)
    return written


def at_paths(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """Change the paths in a tree of settings, or in the value of the setting `name`."""
    if isinstance(value, dict):
        return {key: at_paths(inner, change, f"{name}.{key}".removeprefix(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [at_paths(inner, change, name) for inner in value]
    return change(value) if name in PATHS and isinstance(value, str) else value


def cleaned(value: Any) -> Any:
    """Remove secrets from all URLs in a tree of settings."""
    if isinstance(value, dict):
        return {key: cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def to_yaml(config: Config) -> str:
    return dump(to_tree(config))
