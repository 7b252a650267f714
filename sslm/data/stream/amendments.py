"""What the stream could not know beforehand: bad shards, and examples to leave out."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Amendment:
    """From a position on, windows of a shard are replaced by those of the next sound one."""

    from_position: int
    source: str
    file: str
    reason: str
    kind: str = "bad_shard"


@dataclass(frozen=True)
class Skip:
    """From a position on, examples are those of so many positions later."""

    from_position: int
    num_positions: int
    reason: str
    kind: str = "skip"


def amendment_of(known: dict[str, Any]) -> Amendment | Skip:
    """As a checkpoint or amendments.jsonl has it."""
    return Skip(**known) if known["kind"] == "skip" else Amendment(**known)
