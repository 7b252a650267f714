"""What is to happen to a block's documents, in a file beside its signatures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.work import written_whole

Decision = Mapping[str, NDArray[Any]]
"""
fate: [texts] KEPT, EXACT or NEAR
kept_as: [texts] the number, in the corpus, of the document that stays in its place; its own if it stays
lines: [lines, 2] (text of the block, line of the text) that go
passages: [passages, 3] (text of the block, its first word, the word after its last) that go
"""
KEPT, EXACT, NEAR = 0, 1, 2
"""A document's fate: it stays, or it goes because an earlier one is the same, or nearly."""


def decision_file(block: Path) -> Path:
    """Name the file for the decision about a block, whose signatures are in `block`."""
    return block.with_name(f"{block.name.removesuffix('.npz')}.decision.npz")


def read_decision(file: Path) -> Decision:
    """Read a decision, or a block's signatures."""
    with np.load(file) as arrays:
        return dict(arrays)


def write_decision(file: Path, decision: Decision) -> None:
    """Write a decision whole or not at all; equal ones are equal bytes."""
    written_whole(file, lambda part: np.savez(part, allow_pickle=False, **decision))
