"""Changes to the stream that a run makes: bad shards to replace, and examples to skip."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sslm.system.errors import UserError, short


@dataclass(frozen=True)
class Amendment:
    """From a position on, the next sound shard's windows stand in for those of a bad shard."""

    from_position: int
    source: str
    file: str
    reason: str
    kind: str = "bad_shard"


@dataclass(frozen=True)
class Skip:
    """From a position on, the stream gives the examples of `num_positions` later."""

    from_position: int
    num_positions: int
    reason: str
    kind: str = "skip"


def amendment_of(known: dict[str, Any]) -> Amendment | Skip:
    """Parse an amendment from a checkpoint or a line of amendments.jsonl; UserError if it is none."""
    numbers = ("from_position", "num_positions")
    if all(isinstance(value, int if key in numbers else str) for key, value in known.items()):
        with suppress(TypeError):
            return Skip(**known) if known.get("kind") == "skip" else Amendment(**known)
    raise UserError(f"amendments.jsonl: {short(known)} is no amendment; remove its line")
