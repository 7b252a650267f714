"""What each token of a row is to the model: text, masked, replaced, kept, a sentinel, padding, a document's end."""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np

from sslm.data.stream.recipe import IGNORED, Arrays, Ints
from sslm.data.stream.vocabulary import Vocabulary


class Kind(Enum):
    """Kinds of tokens, with their style in a terminal."""

    TEXT = ""
    MASKED = "bold red"
    """Hidden from the model, which predicts what stood there."""
    REPLACED = "bold magenta"
    """Another token stands there, and the model predicts the true one."""
    KEPT = "bold yellow"
    """Predicted although it stands there."""
    SENTINEL = "bold blue"
    """Holds a span's place."""
    SPECIAL = "cyan"
    """Stands for no text."""
    END = "bold cyan"
    """Ends a document."""
    PADDING = "dim"
    IGNORED = "dim "
    """A place without a target, among targets."""


class Run(NamedTuple):
    """Neighbouring tokens of one kind."""

    kind: Kind
    ids: list[int]
    targets: list[int]
    """What they are to be, if they are predicted in their places."""
    begins_document: bool
    """Whether a document ends just before it, and the next begins."""


def runs(kinds: list[Kind], ids: Ints, targets: Ints | None, begins: set[int]) -> Iterator[Run]:
    """Group a row's tokens; a run ends where a document does."""
    first = 0
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[first] and end not in begins:
            continue
        predicted = kinds[first] in (Kind.MASKED, Kind.REPLACED, Kind.KEPT) and targets is not None
        there = targets[first:end].tolist() if predicted and targets is not None else []
        yield Run(kinds[first], ids[first:end].tolist(), there, first in begins)
        first = end


def plain_kinds(ids: Ints, vocabulary: Vocabulary) -> list[Kind]:
    """Tell sentinels, documents' ends and other special tokens from text."""
    sentinels = {*vocabulary.sentinels.tolist()}

    def kind(number: int) -> Kind:
        if number < 0:
            return Kind.IGNORED
        if number in sentinels:
            return Kind.SENTINEL
        if number == vocabulary.end:
            return Kind.END
        if number == vocabulary.mask:
            return Kind.MASKED
        return Kind.SPECIAL if number < vocabulary.size and vocabulary.special[number] else Kind.TEXT

    return [kind(number) for number in ids.tolist()]


def input_kinds(row: Arrays, vocabulary: Vocabulary, *, in_place: bool, predicts_next_token: bool) -> list[Kind]:
    """Tell what each of a row's inputs is.

    Args:
        row: name -> [length].
        in_place: whether a label is what its place's input is to be.
        predicts_next_token: whether a label is the token after its place.
    """
    ids, kinds = row["input_ids"], plain_kinds(row["input_ids"], vocabulary)
    if in_place:
        for n in np.flatnonzero(row["labels"] >= 0).tolist():
            is_same = ids[n] == row["labels"][n]
            kinds[n] = Kind.MASKED if ids[n] == vocabulary.mask else Kind.KEPT if is_same else Kind.REPLACED
    for n in range(num_read(row, predicts_next_token), len(kinds)):
        kinds[n] = Kind.PADDING
    return kinds


def num_read(row: Arrays, predicts_next_token: bool) -> int:
    """Count the inputs before the padding."""
    for name, least in (("attention_mask", 1), ("segment_ids", 0)):
        if name in row:
            return int(np.count_nonzero(row[name] >= least))
    if predicts_next_token:  # what is last read predicts nothing, if padding follows
        scored = np.flatnonzero(row["labels"] != IGNORED)
        return min(int(scored[-1]) + 2, len(row["labels"])) if len(scored) else len(row["labels"])
    return len(row["input_ids"])


def document_starts(kinds: list[Kind], segments: Ints | None) -> set[int]:
    """Find where documents begin within a row: after an end, or where the segment changes."""
    nothing = (Kind.PADDING, Kind.IGNORED)
    starts = {n + 1 for n, kind in enumerate(kinds[:-1]) if kind is Kind.END and kinds[n + 1] not in nothing}
    if segments is not None:
        starts = {int(n) + 1 for n in np.flatnonzero(segments[1:] != segments[:-1]) if segments[n + 1] >= 0}
    return starts
