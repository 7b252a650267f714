"""How far a preparation has come: a small file beside the unfinished corpus, from which a killed one goes on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sslm.system.files import write_atomically

FILE = "journal.json"


@dataclass
class Journal:
    """What was consumed of the source, and what the shards hold of it. Both were on the disk before the journal was."""

    identity: str
    """Of everything that decides what the corpus will hold."""
    tokenizer_sha256: str
    pieces: int = 0
    """Consumed of the source, without empty documents."""
    documents: int = 0
    tokens: int = 0
    num_bytes: int = 0
    shards: dict[str, Any] = field(default_factory=lambda: {"finished": [], "open": []})
    """CorpusWriter's state."""

    def write(self, folder: Path) -> None:
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> "Journal":
        """Raises OSError, ValueError or TypeError where there is none that can be read."""
        return Journal(**json.loads((folder / FILE).read_text()))
