"""Batches: item number `step` of a loader is this rank's share of optimizer step `step`.

Rank r takes positions first + r·share … + share, in order, of a step that begins at position `first`. A loader depends
on nothing but the step's number, so to restore it is to say where to start.
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sslm.config.batch_sizes import BatchSizes, Leg
from sslm.data.corpus.shards import BadShard
from sslm.data.labelled.task import Task
from sslm.data.stream.pieces import Pieces, cut, pieces_of
from sslm.data.stream.recipe import Arrays, Examples, Ints, Recipe, is_target, unscored
from sslm.data.stream.stream import Places, Stream
from sslm.data.stream.vocabulary import Vocabulary
from sslm.system.errors import UserError
from sslm.system.random_words import key64, mix64

GLIBC_LARGEST_THRESHOLD = (32 << 20) - (1 << 16)
"""Size of a block that is to be freed once. See docs/lessons.md, "glibc gives large arrays back at once"."""
BESIDE = "teacher_"
"""What names of arrays begin with that a batch has beside its inputs and targets: they are of no row's length."""
PLACES_AT_ONCE, ROWS_AT_ONCE, TOKENS_AT_ONCE = 4096, 256, 1 << 16
"""Positions to look up, rows to read, and tokens to make batches of, together: many cost little more than one."""


class Batch(TypedDict, total=False):
    """This rank's share of a batch, as a loader gives it."""

    tensors: dict[str, Any]
    """Name -> [share, …]: arrays as the recipe made them, then tensors; empty if a shard is bad."""
    positions: NDArray[np.int64]
    """[share] global index of each example, or of each piece of one."""
    sources: NDArray[np.int64]
    """[share] number of each example's source in the mixture."""
    pieces: int
    """Rows that are one example, as its window was cut; absent if each is."""
    amendments: int
    """Number of amendments that were known when a training batch was made."""
    bad: list[str]
    """(source, file, reason) of a shard that could not be read and is to be replaced."""
    error: UserError
    """Error of a loader process, to be raised in the training process."""


class StepBatch(TypedDict, total=False):
    """This rank's share of a batch, as a step takes it."""

    tensors: dict[str, Tensor]
    """Name -> [share, …]; empty if a shard is bad."""
    sources: Tensor
    """[share] number of each example's source in the mixture."""
    first_position: int
    """Global index of the first row."""
    pieces: int
    """Rows that are one example, as its window was cut; absent if each is."""
    scored: list[int]
    """Number of targets in this share, per source."""
    num_read: int
    """Number of places of this share's inputs that hold tokens; the others are padding."""
    digest: int
    """Digest of this share, or 0 without one."""
    documents: list[list[int]]
    """Columns of each row in which a document begins, or the padding; absent if nobody asks."""
    lengths: dict[str, list[int]]
    """Name of a tensor that has padding at its rows' ends -> [share] columns before it; absent if rows are full."""
    bad: list[str]
    """(source, file, reason) of a shard that could not be read and is to be replaced."""


@dataclass(eq=False)
class Steps(Dataset[Batch]):
    """Batches by step."""

    stream: Stream
    recipe: Recipe
    sizes: BatchSizes
    """Examples of each step, over all ranks."""
    seed: int
    """Seed of the noise."""
    rank: int = 0
    """This process' place among the data-parallel ranks."""
    world: int = 1
    """Data-parallel size."""
    vocabulary: Vocabulary | None = None
    """The tokenizer's tables, for recipes that need them."""


@dataclass(eq=False)
class TrainSteps(Steps):
    """Training batches by step. Arrays are views: inputs and targets often share their tokens."""

    substitute: bool = field(default=False, kw_only=True)
    """Whether a batch that meets a bad shard names it instead of raising."""
    beside: Callable[[Ints, Arrays], Arrays] | None = field(default=None, kw_only=True)
    """Reads what else a batch has, of its examples' positions if none were skipped, and of what the recipe made."""

    def __post_init__(self) -> None:
        self._leg = Leg(0, 0, 0)
        """What was looked up and read is of these steps."""
        self._pieces: Pieces | None = None
        """How windows are cut; None if they stay whole."""
        self._places, self._places_from = Places(*[np.empty(0, np.int64)] * 5), 0
        self._examples: Examples | None = None
        self._examples_from = 0
        self._made: Arrays = {}
        self._made_steps = range(0)
        self._ahead: dict[int, Batch] = {}

    def __getitem__(self, step: int) -> Batch:
        if step in self._ahead:
            return self._ahead.pop(step)
        if (leg := self.sizes.leg_at(step)) is not self._leg:
            self.forget()
            self._leg = leg
            self._pieces = None if leg.seq_len is None else self._pieces_of(leg.seq_len, leg.pieces)
        share = self._rows
        row = (step - self._examples_from) * share
        if self._examples is None or not 0 <= row < len(self._examples.positions):
            try:
                self._read(step, 1 if get_worker_info() else max(ROWS_AT_ONCE // share, 1))
            except BadShard as bad:
                if not self.substitute:
                    raise
                damage = [bad.source, bad.file, str(bad)]
                return {"tensors": {}, "bad": damage, "amendments": len(self.stream.amendments)}
            row = 0
        assert self._examples is not None
        if step not in self._made_steps:
            self._make(step, self._examples, row)
        made, here = self._made_steps.index(step) * share, slice(row, row + share)
        batch: Batch = {
            "tensors": {name: array[made : made + share] for name, array in self._made.items()},
            "positions": self._examples.positions[here],
            "sources": self._examples.sources[here],
            "amendments": len(self.stream.amendments),
        }
        if self.beside is not None:
            batch["tensors"] |= self.beside(self.stream.unskipped(batch["positions"]), batch["tensors"])
        return batch if self._pieces is None else batch | {"pieces": self._pieces.num}

    def make_ahead(self, step: int) -> None:
        """Make a step's batch now, to be taken when its turn comes; an error is left for then."""
        self._ahead.clear()
        with suppress(UserError):
            self._ahead[step] = self[step]

    def _pieces_of(self, seq_len: int, num: int) -> Pieces:
        return pieces_of(self.recipe, self.vocabulary, self.stream.window_len, seq_len, num)

    @property
    def _share(self) -> int:
        """Examples per step of this rank."""
        return self._leg.size // self.world

    @property
    def _rows(self) -> int:
        """Rows per step of this rank."""
        return self._share if self._pieces is None else self._share * self._pieces.num

    def _read(self, step: int, num_steps: int) -> None:
        """Read the examples of some steps at once, or of the first alone if a shard is bad."""
        first = self._leg.position_at(step)
        self.stream.read_ahead(first, self._leg.position_at(step + num_steps) - 1)
        try:
            read = self.stream.read(self._places_of(step, num_steps))
            self._examples, self._examples_from = read if self._pieces is None else cut(read, self._pieces), step
            self._made_steps = range(0)
        except BadShard:
            if num_steps == 1:
                raise
            self._read(step, 1)

    def _make(self, step: int, examples: Examples, row: int) -> None:
        """Make the batches of this step, whose examples begin at `row`, and of some after it if they are small."""
        rows, length = examples.tokens.shape
        share = self._rows
        steps = max(min(rows - row, TOKENS_AT_ONCE // length) // share, 1)
        some = examples.rows(slice(row, row + steps * share))
        seed = self.seed if self._pieces is None else key64(self.seed, "pieces", *self._pieces)
        self._made, self._made_steps = (self.recipe.make_batch(some, self.vocabulary, seed), range(step, step + steps))

    def _places_of(self, step: int, num_steps: int) -> Places:
        share = self._share
        row, end = ((n - self._places_from) * share for n in (step, step + num_steps))
        if not 0 <= row < end <= len(self._places.positions):
            steps = np.arange(max(PLACES_AT_ONCE // share, num_steps))
            first = self._leg.position_at(step) + steps[:, None] * self._leg.size + self.rank * share
            self._places, self._places_from = self.stream.places((first + np.arange(share)).ravel()), step
            row, end = 0, num_steps * share
        return self._places.rows(slice(row, end))

    def forget(self) -> None:
        """Drop what was looked up and read: the stream was amended."""
        self._places, self._examples = self._places.rows(slice(0)), None
        self._made_steps = range(0)
        self._ahead.clear()


@dataclass(eq=False)
class ValSteps(Steps):
    """Validation batches by step: the same windows at every validation and on any number of ranks."""

    places: Places = field(kw_only=True)
    """The windows to validate on. Rows beyond the last are not scored."""

    @property
    def num_steps(self) -> int:
        return -(-len(self.places.positions) // self.sizes.legs[0].size)

    def __getitem__(self, step: int) -> Batch:
        share = self.sizes.legs[0].size // self.world
        rows = self.sizes.position_at(step) + self.rank * share + np.arange(share)
        last = len(self.places.positions) - 1
        examples = self.stream.read(self.places.rows(np.minimum(rows, last))).rows(slice(None))
        arrays = self.recipe.make_batch(examples, self.vocabulary, key64(self.seed, "val"))
        arrays["labels"] = unscored(arrays["labels"], rows > last)
        return {"tensors": arrays, "positions": rows, "sources": examples.sources}


class Loader:
    """Batches of steps first … end, made in this process or by loader processes.

    Args:
        steps: batches by step.
        first: first step, or a function that finds it at each iteration, as a run may go back.
        end: step after the last; whoever goes on into another epoch gets the steps up to the next multiple.
        num_workers: number of loader processes, or 0 for none.
        ends_itself: whether batches end there; False if a trainer counts them, and ends its epochs wherever they began.
        on_batch: told before each batch how many steps there are up to it.
    """

    def __init__(
        self,
        steps: Steps,
        first: int | Callable[[], int],
        end: int,
        num_workers: int = 0,
        *,
        ends_itself: bool = True,
        on_batch: Callable[[int], None] = lambda num_steps: None,
    ) -> None:
        self.steps, self.first, self.end, self.num_workers = steps, first, end, num_workers
        self.ends_itself, self.on_batch = ends_itself, on_batch
        np.empty(GLIBC_LARGEST_THRESHOLD, np.uint8)  # freed at once
        self._started = self._start
        self.workers = self._new_workers()

    @property
    def range(self) -> range:
        first = self.first() if callable(self.first) else self.first
        return range(first, (first // self.end + 1) * self.end if self.ends_itself else first + self.end)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where batches go on follows from the step. That there is a state tells Lightning that they do."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is to be loaded."""

    @property
    def _start(self) -> tuple[int, int, BatchSizes]:
        """First step, amendments and sizes of batches: loader processes started with others are replaced."""
        return self.range.start, len(self.steps.stream.amendments), self.steps.sizes

    def _new_workers(self) -> "DataLoader[Batch] | None":
        if not self.num_workers:
            return None
        vocabulary = self.steps.vocabulary
        largest = max(self.steps.stream.vocab_size, vocabulary.size if vocabulary else 0)
        kind = np.dtype(np.int16 if largest <= 1 << 15 else np.int32)
        return DataLoader(
            _Narrow(self.steps, kind),
            batch_size=None,
            sampler=self.range,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            persistent_workers=True,
        )

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[Batch]:
        if self._started != self._start:
            self._started, self.workers = self._start, self._new_workers()
        return self._batches(self.workers or map(self.steps.__getitem__, self.range), self.range.start)

    def _batches(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        for num_steps, batch in enumerate(batches, first + 1):
            if "error" in batch:
                raise batch["error"]
            self.on_batch(num_steps)
            yield with_tensors(batch)


@atexit.register
def _wake_loaders() -> None:
    """Let loader processes that somebody has stopped go on and end: multiprocessing would wait for them for ever."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


def _as_it_is(batch: Any) -> Any:
    """Keep arrays: a tensor would go through shared memory, which is slower than a pipe at a batch's size."""
    return batch


class _Narrow(Dataset[Batch]):
    """Steps in as few bytes as their ids need: sending a batch is most of what it costs a loader process."""

    def __init__(self, steps: Steps, kind: np.dtype[Any]) -> None:
        self.steps, self.kind = steps, kind

    def __getitem__(self, step: int) -> Batch:
        try:
            batch = self.steps[step]
        except UserError as error:  # torch would raise something else in its place
            return {"error": error}
        arrays = batch["tensors"].items()
        return {**batch, "tensors": {n: a.astype(self.kind) if a.dtype == np.int64 else a for n, a in arrays}}


def with_tensors(batch: Batch) -> Batch:
    """Turn a batch's arrays into tensors, integers into int64."""
    return {**batch, "tensors": {name: torch.from_numpy(_widened(array)) for name, array in batch["tensors"].items()}}


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.int64) if array.dtype.kind == "i" and array.itemsize < 8 else array


def step_batch(
    batch: Batch,
    num_sources: int,
    with_digest: bool = False,
    task: Task | None = None,
    predicts_next_token: bool = False,
    lists_documents: bool = False,
) -> StepBatch:
    """Turn a loader's batch, its arrays already tensors, into what a step takes.

    Args:
        batch: the batch.
        num_sources: of the mixture.
        with_digest: compute its digest.
        task: of labelled rows, which are one text each and so of many lengths; None if rows are full.
        predicts_next_token: whether each token has a target, the one after it, so that places without are padding.
        lists_documents: whether to say where documents begin, for attention by offsets.
    """
    if "bad" in batch:
        return {"tensors": {}, "bad": batch["bad"], "scored": [0] * num_sources, "num_read": 0, "digest": 0}
    arrays = {name: x.numpy() for name, x in batch["tensors"].items() if not name.startswith(BESIDE)}
    made: StepBatch = {
        "tensors": batch["tensors"],
        "sources": torch.from_numpy(batch["sources"]),
        "first_position": int(batch["positions"][0]),
        "scored": _scored(arrays["labels"], batch["sources"], num_sources),
        "digest": digest(arrays, batch["positions"]) if with_digest else 0,
    }
    made["num_read"] = _num_read(arrays, sum(made["scored"]) if predicts_next_token else None)
    if task is not None:
        made["lengths"] = _lengths(arrays, task)
    if lists_documents and (segments := arrays.get("segment_ids", arrays.get("attention_mask"))) is not None:
        made["documents"] = starts_in_rows(segments)
    if "pieces" in batch:
        made["pieces"] = batch["pieces"]
    return made


def starts_in_rows(segments: NDArray[Any]) -> list[list[int]]:
    """List the columns of each row in which its number changes.

    >>> starts_in_rows(np.array([[0, 0, 1, -1], [0, 0, 0, 0]]))
    [[0, 2, 3], [0]]
    """
    changes = segments[:, 1:] != segments[:, :-1]
    return [[0, *(np.flatnonzero(row) + 1).tolist()] for row in changes]


def _num_read(arrays: Arrays, num_targets: int | None) -> int:
    """Count the inputs' places that hold tokens: those of the mask, of documents, or with a target."""
    if "attention_mask" in arrays:
        return int(np.count_nonzero(arrays["attention_mask"]))
    if "segment_ids" in arrays:
        return int(np.count_nonzero(arrays["segment_ids"] >= 0))
    return arrays["input_ids"].size if num_targets is None else num_targets


def _lengths(arrays: Arrays, task: Task) -> dict[str, list[int]]:
    """Columns before the padding, by tensor: labels may have columns for other tokens than the inputs, or for none."""
    read = arrays["attention_mask"].sum(axis=1).tolist()
    found = {name: read for name in arrays if name != "labels"}
    if task.labels_have == "input tokens":
        found["labels"] = read
    elif task.labels_have == "target tokens":
        found["labels"] = is_target(arrays["labels"]).sum(axis=1).tolist()
    return found


def _scored(labels: NDArray[Any], sources: NDArray[np.int64], num_sources: int) -> list[int]:
    """Count the targets of each source."""
    scored = is_target(labels)
    if num_sources == 1:
        return [int(np.count_nonzero(scored))]
    per_row = scored.reshape(len(labels), -1).sum(axis=1)
    return [int(n) for n in np.bincount(sources, per_row, num_sources)]


def pinned(batch: StepBatch) -> StepBatch:
    """Copy a batch's tensors into pinned memory, from which they are sent while this process goes on.

    The copies are contiguous: a view, as of a window's inputs, would be sent from a copy that is not pinned.
    """
    copies: StepBatch = {**batch, "tensors": {name: _pinned(tensor) for name, tensor in batch["tensors"].items()}}
    if "sources" in batch:
        copies["sources"] = _pinned(batch["sources"])
    return copies


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def digest(arrays: Arrays, positions: NDArray[np.int64]) -> int:
    """Hash rows keyed by position, and sum them mod 2^64: ranks' digests add up to the whole batch's."""
    return int(_hashed(arrays, mix64(positions.astype(np.uint64))).sum(dtype=np.uint64))


def row_digests(arrays: Arrays) -> NDArray[np.uint64]:
    """Hash each row, wherever it stands."""
    return _hashed(arrays, np.zeros(len(arrays["labels"]), np.uint64))


def _hashed(arrays: Arrays, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each row with what it begins with."""
    for name in sorted(arrays):
        array = arrays[name].reshape(len(rows), -1)
        if array.dtype.kind == "f":  # by its bits
            array = array.view(f"u{array.itemsize}")
        array = array.astype(np.uint64)
        columns = mix64(np.arange(array.shape[1], dtype=np.uint64) + np.uint64(key64(name))) | np.uint64(1)
        rows = mix64(rows + (array * columns).sum(1, dtype=np.uint64))
    return rows
