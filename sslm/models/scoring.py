"""Log-probabilities that a trained model gives to documents: windows of them, in batches, summed by document.

Each kind of model has its windows. A causal model (`causal_rows`) predicts each token of a document once, from what
stands before the document and as many of its tokens as fit. A masked model (`masked_rows`) sees each token of a window
hidden by itself, one row a token. Rows of like length go through the model together, and their sums back to their
documents (`Tally`): no figure depends on the size of a batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslm.models.head import LanguageModel
from sslm.models.network import IGNORED
from sslm.models.standard_error import Ratio

Ints = NDArray[np.int64]
Pairs = dict[str, tuple[float, float]]
"""Name of a figure -> what is added above and below its fraction line."""

LOSS, BITS_PER_BYTE, WORD_LOSS = "loss", "bits_per_byte", "word_loss"
POOL = 64
"""Batches that are sorted by length together."""


class Piece(Protocol):
    """A document, or a part of a long one."""

    @property
    def document(self) -> int: ...
    @property
    def ids(self) -> Ints: ...
    @property
    def num_bytes(self) -> float: ...
    @property
    def is_end(self) -> bool: ...


class Row(NamedTuple):
    """What goes through the model at once."""

    document: int
    ids: Ints
    """[length] input."""
    labels: Ints | None = None
    """[length] what each place is to predict, -100 if it is not scored; None if an objective makes them of the ids."""
    position: int = 0
    """Number of the row, which keys an objective's noise."""
    counts_for: tuple[str, ...] = (LOSS,)
    """Names of figures to which the row's loss is added."""


# ------------------------------------------------------------------------------------------------ windows


def causal_rows(pieces: Iterable[Piece], before: list[int], seq_len: int, stride: int) -> Iterator[Row]:
    """Cut documents into windows of at most seq_len inputs, so that each token is predicted once.

    The first window of a document predicts all it can, each later one its last `stride` tokens, and the last what is
    left: each from seq_len tokens, or from all that stand before it. With seq_len 4, stride 2 and 9 as what stands
    before a document:

        document        1 2 3 4 5 6 7
        inputs        9 1 2 3
        predicted       1 2 3 4
        inputs            2 3 4 5
        predicted               5 6
        inputs              3 4 5 6
        predicted                   7

    Args:
        pieces: the documents.
        before: id that each document's first token is predicted from; if there is none it is not predicted.
        seq_len: most inputs of a window.
        stride: most tokens that a later window predicts.
    """
    text, first, scored, is_new = np.array(before, np.int64), 0, 0, True
    for piece in pieces:
        if is_new:
            text, first, scored = np.array(before, np.int64), 0, 0
        text, is_new = np.concatenate([text, piece.ids]), piece.is_end
        last = first + len(text) - 1
        while (end := max(scored + stride, seq_len)) < last or (piece.is_end and last > scored):
            end = min(end, last)
            start = max(end - seq_len, first)
            ids = text[start - first : end + 1 - first]
            labels = ids[1:].copy()
            labels[: len(labels) - (end - scored)] = IGNORED
            yield Row(piece.document, ids[:-1], labels)
            scored = end
        text, first = text[max(scored - seq_len - first, 0) :], max(scored - seq_len, first)


class Frame(NamedTuple):
    """How a masked model gets a text."""

    before: Ints
    """Ids before it ([CLS])."""
    after: Ints
    """Ids after it ([SEP])."""
    mask: int
    word_starts: Callable[[Ints], NDArray[np.bool_]]
    """[n, length] ids -> whether a word begins at a token."""


def masked_rows(pieces: Iterable[Piece], frame: Frame, seq_len: int) -> Iterator[Row]:
    """Hide each token of a document by itself (Salazar et al. 2020, arXiv:1910.14659), one row a token.

    And once more with the later tokens of its word (Kauf and Ivanova 2023, arXiv:2305.10588, "within-word l2r"), which
    would tell too much; a word's last token has none and needs no other row. A long document goes through windows that
    overlap by half; each token is hidden in the one in whose middle half it lies, or at the document's edge.
    """
    for document, window, scored in _middles(pieces, seq_len - len(frame.before) - len(frame.after)):
        framed = np.concatenate([frame.before, window, frame.after])
        ends = _word_ends(frame.word_starts(window[None])[0]) + len(frame.before)
        for place in range(scored.start, scored.stop):
            at = place + len(frame.before)
            labels = np.full_like(framed, IGNORED)
            labels[at] = framed[at]
            is_last = ends[place] == at + 1
            for end in (at + 1,) if is_last else (at + 1, ends[place]):
                ids = framed.copy()
                ids[at:end] = frame.mask
                counts_for = (LOSS, WORD_LOSS) if is_last else (LOSS,) if end == at + 1 else (WORD_LOSS,)
                yield Row(document, ids, labels, counts_for=counts_for)


def _word_ends(starts: NDArray[np.bool_]) -> Ints:
    """[length] place just after each token's word.

    >>> _word_ends(np.array([True, False, True])).tolist()
    [2, 2, 3]
    """
    edges = np.append(np.flatnonzero(starts), len(starts))
    ends: Ints = edges[np.searchsorted(edges, np.arange(len(starts)), side="right")]
    return ends


def _middles(pieces: Iterable[Piece], length: int) -> Iterator[tuple[int, Ints, range]]:
    """Cut documents into windows that overlap by half: (document, ids, places scored in this one)."""
    stride, is_new = max(length // 2, 1), True
    text, first, scored = np.empty(0, np.int64), 0, 0
    for piece in pieces:
        if is_new:
            text, first, scored = np.empty(0, np.int64), 0, 0
        text, is_new = np.concatenate([text, piece.ids]), piece.is_end
        while len(text) > length:
            end = first + (length + stride) // 2
            yield piece.document, text[:length], range(scored - first, end - first)
            text, first, scored = text[stride:], first + stride, end
        if piece.is_end and (last := first + len(text)) > scored:
            yield piece.document, text, range(scored - first, last - first)


def consecutive_rows(pieces: Iterable[Piece], length: int) -> Iterator[Row]:
    """Cut documents into windows one after the other, for an objective that makes inputs and labels of them."""
    rest, is_new, position = np.empty(0, np.int64), True, 0
    for piece in pieces:
        rest, is_new = np.concatenate([rest[:0] if is_new else rest, piece.ids]), piece.is_end
        while len(rest) > length or (piece.is_end and len(rest)):
            yield Row(piece.document, rest[:length], position=position)
            rest, position = rest[length:], position + 1


# ------------------------------------------------------------------------------------------------ batches


def in_batches(rows: Iterable[Row], batch_size: int | None, batch_tokens: int) -> Iterator[list[Row]]:
    """Group rows of like length: `batch_size` of them, or as many as come to `batch_tokens` with their padding."""
    rows = iter(rows)
    while pool := list(_pool(rows, batch_size, batch_tokens)):
        pool.sort(key=_size, reverse=True)
        while pool:
            longest = len(pool[0].ids)
            size = batch_size or max(batch_tokens // longest, 1)
            alike = [row for row in pool[:size] if 2 * len(row.ids) >= longest]  # the first ones: pool is sorted
            yield alike
            pool = pool[len(alike) :]


def _size(row: Row) -> tuple[int, int]:
    return len(row.ids), 0 if row.labels is None else int((row.labels != IGNORED).sum())


def _pool(rows: Iterator[Row], batch_size: int | None, batch_tokens: int) -> Iterator[Row]:
    if batch_size is not None:
        yield from islice(rows, POOL * batch_size)
        return
    tokens = 0
    while tokens < POOL * batch_tokens and (row := next(rows, None)) is not None:
        tokens += len(row.ids)
        yield row


Collate = Callable[[list[Row]], dict[str, Tensor]]


def padded(batch: list[Row], sees_padding: bool) -> dict[str, Tensor]:
    """Make a batch of rows that bring their labels, padded on the right.

    Args:
        sees_padding: whether a token sees what stands after it, so that padding needs a mask.
    """
    width = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(batch):
        assert row.labels is not None
        ids[number, : len(row.ids)] = torch.from_numpy(row.ids)
        labels[number, : len(row.ids)] = torch.from_numpy(row.labels)
        mask[number, : len(row.ids)] = 1
    tensors = {"input_ids": ids, "labels": labels}
    return tensors | ({"attention_mask": mask} if sees_padding and not mask.all() else {})


class Scored(NamedTuple):
    """A batch that went through the model."""

    rows: list[Row]
    tensors: dict[str, Tensor]
    """On the model's device."""
    pairs: list[Pairs]
    """Each row's summed loss and number of scored tokens."""
    predicted: Tensor
    """[batch, length] the likeliest token at each scored place, -100 elsewhere."""


@torch.inference_mode()
def scored(
    network: LanguageModel, batches: Iterable[list[Row]], collate: Collate, device: torch.device, predict: bool = False
) -> Iterator[Scored]:
    """Run batches; `predicted` is empty unless asked for."""
    gathers = network.max_scored is not None
    for batch in batches:
        tensors = collate(batch)
        num = (tensors["labels"] != IGNORED).sum(1)
        network.max_scored = max(int(num.max()), 1) if gathers else None
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        output = network(**tensors, predict=predict)
        losses, predicted = output[:2] if predict else (output, output[:0])
        sums = zip(batch, losses.double().tolist(), num.tolist(), strict=True)
        pairs = [dict.fromkeys(row.counts_for, (loss, n)) for row, loss, n in sums]
        yield Scored(batch, tensors, pairs, predicted)


# ------------------------------------------------------------------------------------------------ documents


@dataclass
class _Open:
    """A document of which not all has been scored."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    num_bytes: float = 0.0
    waiting: int = 0
    """Rows that are still to be scored."""
    is_whole: bool = False


@dataclass
class Tally:
    """Adds up rows by document, and documents by figure. A document counts once all of it has been scored."""

    ratios: dict[str, Ratio] = field(default_factory=dict)
    num_documents: int = 0
    num_bytes: float = 0.0
    bytes_read: float = 0.0
    tokens_read: int = 0
    _open: dict[int, _Open] = field(default_factory=dict)

    def read(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Pass pieces on to what makes rows of them."""
        for piece in pieces:
            document = self._open.setdefault(piece.document, _Open())
            document.num_bytes += piece.num_bytes
            self.bytes_read += piece.num_bytes
            self.tokens_read += len(piece.ids)
            yield piece  # when the next is asked for, all its rows have been made
            document.is_whole = piece.is_end
            self._close(piece.document)

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on to what scores them."""
        for row in rows:
            self._open[row.document].waiting += 1
            yield row

    def add(self, row: Row, pairs: Pairs) -> None:
        """Add what a row came to."""
        document = self._open[row.document]
        for name, (x, y) in pairs.items():
            sums = document.sums.setdefault(name, [0.0, 0.0])
            sums[0] += x
            sums[1] += y
        document.waiting -= 1
        self._close(row.document)

    def _close(self, number: int) -> None:
        document = self._open[number]
        if document.waiting or not document.is_whole:
            return
        del self._open[number]
        self.num_documents += 1
        self.num_bytes += document.num_bytes
        for name, (x, y) in document.sums.items():
            self.ratios.setdefault(name, Ratio()).add(x, y)
        if LOSS in document.sums:
            bits = document.sums[LOSS][0] / math.log(2)
            self.ratios.setdefault(BITS_PER_BYTE, Ratio()).add(bits, document.num_bytes)


def unsound_weight(model: Any) -> str | None:
    """Name a weight that is not a finite number, or None if all are."""
    return next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
