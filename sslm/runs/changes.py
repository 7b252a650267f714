"""Which settings may be others when a run resumes, and which are: by themselves, or on purpose (--resume_with)."""

import json
from collections.abc import Collection
from os.path import expanduser
from typing import Any

from sslm.config import FLAGS, OPEN_SECTIONS
from sslm.config.written import at_paths
from sslm.system.errors import UserError, nearest, short
from sslm.system.other_names import SETTINGS

Differences = dict[str, tuple[Any, Any]]
"""Setting -> (what it was, what it is now)."""
WHY_FIXED = {
    "model": "the weights have its shape; of the model's settings dropout alone may change",
    "objective": "another objective is another run",
    "data": "it decides what every batch holds",
    "lora": "adapters are weights of that shape",
    "distill.from_layers": "the first weights followed from it",
    "distill.hidden_weight": "with it come weights that make the student's states as wide as the teacher's",
    "prune": "what is pruned does not come back; its begin and end alone may change",
    "seed": "order, noise and dropout follow from it, from the first step on",
    "seq_len": "it decides what every batch holds",
    "optim.name": "each optimizer has states of its own",
    "optim.mup": "the first weights followed from it",
    "optim.average_decay": "the average is one over all steps",
}
"""Setting or section -> why a run that resumes may not change it, even if it is named."""


def parse_resume_with(text: str | None) -> list[str]:
    """`optim.lr,batch_size` -> their names; UserError if one does not exist, or may not change."""
    names = [name.strip().removeprefix("--") for name in (text or "").split(",") if name.strip()]
    for name in names:
        section, _, key = name.rpartition(".")
        if name not in FLAGS and not (section in OPEN_SECTIONS and key):
            close = nearest(name, FLAGS, SETTINGS)
            raise UserError(f"--resume_with {short(text)}: there is no setting {short(name)}{close}")
        if not may_change(name, names):
            why = WHY_FIXED.get(name) or WHY_FIXED[section]
            raise UserError(f"--resume_with {short(text)}: {short(name)} can't change when a run resumes: {why}")
    return names


def may_change(name: str, named: Collection[str] = ()) -> bool:
    """Whether a setting may differ from the run's own when it goes on, by itself or because it is named."""
    if name in FLAGS:
        allowed = FLAGS[name].metadata.get("may_change", False)
        return allowed is True or (allowed == "if named" and name in named)
    section, _, key = name.rpartition(".")
    return section == "model" and "drop" in key and name in named


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Differences:
    """Find the settings that differ, of those that may not change by themselves; `~/a` equals the whole path."""
    found: Differences = {}
    for key in dict.fromkeys([*old, *new]):
        name, now = f"{prefix}{key}", new.get(key)
        if isinstance(now, dict) and key not in old:  # a section that came after the run began
            continue
        was = old.get(key, FLAGS[name].default if name in FLAGS else None)  # of a setting that came since: its default
        if isinstance(was, dict) or isinstance(now, dict):
            found |= differences(was or {}, now or {}, f"{name}.")
        elif not may_change(name) and _comparable(was, name) != _comparable(now, name):
            found[name] = was, now
    return found


def _comparable(value: Any, name: str) -> Any:
    """A setting with whole paths; of a list's entries what is set, for keys that came since have their default."""
    if isinstance(value, list):
        value = [
            {key: inner for key, inner in item.items() if inner is not None} if isinstance(item, dict) else item
            for item in value
        ]
    return at_paths(value, expanduser, name)


def in_words(found: Differences) -> str:
    """Say what differs: `optim.lr (was not set, now 0.001)`."""
    return "; ".join(
        f"{name} (was {_in_words(name, was)}, now {_in_words(name, now)})" for name, (was, now) in found.items()
    )


def _in_words(name: str, value: Any) -> str:
    """Write a setting's value as it could stand in YAML; null is "not set", unless it is a choice of its own."""
    is_default = name not in FLAGS or FLAGS[name].default is None
    return "not set" if value is None and is_default else json.dumps(value, ensure_ascii=False, default=str)
