"""The stream: examples at any positions, of one source or a mixture, as a pure function.

position -> mixture -> (source, its example number) -> order -> (epoch, shard, window) -> tokens. Nothing here knows of
ranks, workers or batches. The only state is the list of amendments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.shards import BadShard, Corpus
from sslm.data.stream.amendments import Amendment, Skip
from sslm.data.stream.augmentation.augmenter import Augmenter, augmented
from sslm.data.stream.mixture import Mixture
from sslm.data.stream.open_shard import OpenShard
from sslm.data.stream.order import Order
from sslm.data.stream.packing import Packed
from sslm.data.stream.recipe import Examples
from sslm.data.stream.windows import Cut, Region, Whole
from sslm.system.errors import UserError

MOST_OPEN = 200
"""Largest number of shards that are mapped at once: each map holds a file descriptor."""

WINDOWS_IN_WORDS = {Cut: "cut", Packed: "best_fit", Whole: "whole"}

Ints = NDArray[np.int64]
Read = tuple[NDArray[Any], Ints | None, NDArray[np.bool_] | None]
"""(tokens as narrow as on the disk, rows' lengths, marks where documents begin)."""


@dataclass(frozen=True)
class StreamSource:
    """The windows of one corpus and their order."""

    name: str
    corpus: Corpus
    regions: Sequence[Region]
    windows: Cut | Packed | Whole
    order: Order
    augment: Augmenter | None = None
    """What makes noise in its text, if it is to train on."""

    @property
    def num_windows(self) -> int:
        return self.order.epoch_len

    def fingerprint(self) -> dict[str, Any]:
        """Record what decides which tokens stand in which window, and when."""
        return {
            "tokenizer": self.corpus.tokenizer_sha256,
            "shards": {r.shard.file: [r.shard.sha256[:24], r.start, r.end] for r in self.regions},
            "block_shards": self.order.block_shards,
            "packing": WINDOWS_IN_WORDS[type(self.windows)],
            "num_windows": self.num_windows,
            **({} if self.corpus.labelled is None else {"labels": list(self.corpus.labelled.names)}),
            **({} if self.augment is None else {"augment": self.augment.setting}),
        }


class Places(NamedTuple):
    """Where examples stand: arrays of [n]."""

    positions: Ints
    sources: Ints
    epochs: Ints
    regions: Ints
    windows: Ints

    def rows(self, some: slice | Ints) -> "Places":
        return Places(*(column[some] for column in self))

    @staticmethod
    def joined(parts: Sequence["Places"]) -> "Places":
        return Places(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class Stream:
    """Examples at any positions, of one source or a mixture.

    Ids from `vocab_size` on are damage. If `with_documents`, examples tell which document each token belongs to.
    """

    def __init__(
        self, sources: list[StreamSource], mixture: Mixture, window_len: int, vocab_size: int, with_documents: bool
    ) -> None:
        self.sources, self.mixture, self.window_len = tuple(sources), mixture, window_len
        self.vocab_size, self.with_documents = vocab_size, with_documents
        self.amendments: list[Amendment | Skip] = []
        self._windows = type(self.sources[0].windows)
        self._is_remote = any(source.corpus.is_remote for source in self.sources)
        self._stride = self.sources[0].windows.stride
        self._dtype = np.result_type(*(source.corpus.dtype for source in self.sources))
        # regions of all sources, numbered through
        counts = np.array([len(source.regions) for source in self.sources], np.int64)
        self._first_shard = np.cumsum(counts) - counts
        self._regions = [(source, region) for source in self.sources for region in source.regions]
        self._region_starts = np.array([region.start for _, region in self._regions], np.int64)
        self._region_ends = np.array([region.end for _, region in self._regions], np.int64)
        self._augmenters = [source.augment for source in self.sources]
        self._reads_documents = with_documents or any(self._augmenters)
        self._num_read = max([window_len, *(augment.needed(window_len) for augment in self._augmenters if augment)])
        """Tokens to read of a window and what follows it."""
        self._open: dict[int, OpenShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # files are mapped anew in another process

    @property
    def num_windows(self) -> int:
        return sum(source.num_windows for source in self.sources)

    # ------------------------------------------------------------------------------------ position -> place

    def places(self, positions: Ints) -> Places:
        """Find where the examples at [n] positions stand."""
        sources, numbers = self.mixture.at(self.unskipped(positions))
        epochs, regions, windows = np.empty_like(positions), np.empty_like(positions), np.empty_like(positions)
        if len(self.sources) == 1:
            epochs, regions, windows = self.sources[0].order.at(numbers)
        else:
            for i in np.unique(sources):
                here = sources == i
                epochs[here], regions[here], windows[here] = self.sources[i].order.at(numbers[here])
        places = Places(positions, sources, epochs, regions, windows)
        for number, amendment in enumerate(self.amendments):
            if isinstance(amendment, Amendment):
                self._amend(places, number, amendment)
        return places

    def unskipped(self, positions: Ints) -> Ints:
        """Map [n] positions of the run to those at which their examples would stand if none were skipped.

        Each skip was found in a run that knew the former ones, so the last is undone first. Noise, dropout and bad
        shards go by the run's positions.
        """
        for amendment in reversed(self.amendments):
            if isinstance(amendment, Skip):
                positions = positions + amendment.num_positions * (positions >= amendment.from_position)
        return positions

    def skipped_at(self, first: int, end: int) -> int:
        """Count the examples that were skipped at the run's positions first … end − 1."""
        skips = [skip for skip in self.amendments if isinstance(skip, Skip)]
        return sum(skip.num_positions for skip in skips if first <= skip.from_position < end)

    def begins_stage(self, first: int, end: int) -> bool:
        """Whether the weights change at one of the run's positions first … end − 1."""
        _, *later = self.mixture.stages
        if not later:
            return False
        before, last = self.unskipped(np.array([first - 1, end - 1])).tolist()
        return any(before < stage.position <= last for stage in later)

    def amend(self, amendment: Amendment | Skip) -> None:
        """Apply an amendment from its position on; UserError if the source has no sound shard left."""
        self.amendments.append(amendment)
        if isinstance(amendment, Skip):
            return
        for source in self.sources:
            if source.name == amendment.source and not self._sound(source, self.amendments):
                raise UserError(f"{source.name or 'the corpus'}: every shard is bad ({amendment.reason})")

    def _sound(self, source: StreamSource, amendments: Sequence[Amendment | Skip]) -> list[int]:
        bad = {known.file for known in amendments if isinstance(known, Amendment) and known.source == source.name}
        sizes = source.order.num_windows
        return [i for i, region in enumerate(source.regions) if region.shard.file not in bad and sizes[i]]

    def _amend(self, places: Places, number: int, amendment: Amendment) -> None:
        """Apply an amendment as if no later one were known, so that what was read before those stays as it was."""
        for i, source in enumerate(self.sources):
            bad = [n for n, region in enumerate(source.regions) if region.shard.file == amendment.file]
            if source.name != amendment.source or not bad:
                continue
            rows = np.isin(places.regions, bad) & (places.sources == i) & (places.positions >= amendment.from_position)
            if rows.any():
                sound = self._sound(source, self.amendments[: number + 1])
                instead = next((n for n in sound if n > bad[-1]), sound[0])
                places.regions[rows] = instead
                places.windows[rows] %= source.order.num_windows[instead]

    def read_ahead(self, first: int, last: int) -> None:
        """Let remote sources download the shards of positions first … last, and the block after them."""
        if not self._is_remote:
            return
        first, last = self.unskipped(np.array([first, last])).tolist()
        spans = zip(self.mixture.examples_before(first), self.mixture.examples_before(last), strict=True)
        for source, before, (begin, end) in zip(self.sources, self._first_shard.tolist(), spans, strict=True):
            if source.corpus.is_remote:
                needed = source.order.shards_between(begin, end)
                for number, _ in enumerate(source.regions):
                    if number not in needed:  # while it is mapped its room on the disk stays taken
                        self._open.pop(before + number, None)
                source.corpus.read_ahead([source.regions[number].shard for number in needed])

    def seen(self, position: int) -> dict[str, tuple[int, float]]:
        """Count each source's examples before a position, skipped ones too: name -> (examples, epochs)."""
        counts = self.mixture.examples_before(int(self.unskipped(np.array(position - 1))) + 1)
        return {s.name: (n, n / max(s.num_windows, 1)) for s, n in zip(self.sources, counts, strict=True)}

    def fingerprint(self) -> dict[str, Any]:
        """Record what decides every batch, but for the seed: a run resumes only with an equal record."""
        return {
            "sources": {source.name: source.fingerprint() for source in self.sources},
            "stages": [[stage.position, list(stage.weights)] for stage in self.mixture.stages],
            "window_len": self.window_len,
        }

    def places_of(self, source: int, numbers: Ints) -> Places:
        """Find windows by their number in a source, in the order of the disk; the number is their position too."""
        first = np.concatenate([[0], np.cumsum(self.sources[source].order.num_windows)])
        regions = np.searchsorted(first, numbers, side="right") - 1
        return Places(numbers, np.full_like(numbers, source), np.zeros_like(numbers), regions, numbers - first[regions])

    # ------------------------------------------------------------------------------------ place -> tokens

    def at(self, positions: Ints) -> Examples:
        """Read the examples at [n] positions."""
        return self.read(self.places(positions)).rows(slice(None))

    def read(self, places: Places) -> Examples:
        """Read the tokens at some places, in the dtype of the disk.

        Raises:
            BadShard: a file is missing or not what it was.
        """
        shards = self._first_shard[places.sources] + places.regions
        for number in np.unique(shards).tolist():
            self._shard(number, check=True)
        read = {Cut: self._read_cut, Packed: self._read_packed, Whole: self._read_whole}[self._windows]
        if self._windows is Cut and self._num_read > self.window_len:
            read = self._read_on
        narrow, lengths, marks = read(shards, places)
        if narrow.size and narrow.max() >= self.vocab_size:
            self._refuse_ids(shards, narrow)
        documents = None if marks is None else np.cumsum(marks, axis=1, dtype=np.int32)
        if documents is not None and lengths is not None:
            documents[np.arange(narrow.shape[1]) >= lengths[:, None]] = -1
        examples = Examples(narrow, places.positions, places.epochs, places.sources, lengths, documents)
        if any(self._augmenters):
            examples = augmented(examples, self._augmenters, self.window_len, keeps_length=self._windows is Cut)
            examples = examples if self.with_documents else examples._replace(documents=None)
        return examples

    def _read_cut(self, shards: Ints, places: Places) -> Read:
        """Read rows shard by shard: each is a stretch of one shard."""
        starts = self._region_starts[shards] + places.windows * self._stride
        if len(shards) and (shards == shards[0]).all():
            shard = self._shard(int(shards[0]))
            return shard.rows(self.window_len)[starts], None, self._marks(shard, starts, self.window_len)
        narrow = np.empty((len(shards), self.window_len), self._dtype)
        marks = np.empty(narrow.shape, np.bool_) if self._reads_documents else None
        by_shard = np.argsort(shards, kind="stable")
        for rows in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            shard = self._shard(int(shards[rows[0]]))
            narrow[rows] = shard.rows(self.window_len)[starts[rows]]
            if marks is not None:
                marks[rows] = self._marks(shard, starts[rows], self.window_len)
        return narrow, None, marks

    def _read_on(self, shards: Ints, places: Places) -> Read:
        """Read windows and the text after them, as far as their regions go."""
        starts = self._region_starts[shards] + places.windows * self._stride
        ends = np.minimum(starts + self._num_read, self._region_ends[shards])
        narrow = np.zeros((len(shards), self._num_read), self._dtype)
        marks = np.zeros(narrow.shape, np.bool_)
        for number in np.unique(shards).tolist():
            shard, rows = self._shard(number), np.flatnonzero(shards == number)
            narrow[rows] = shard.stretches(starts[rows], ends[rows], self._num_read)
            marks[rows] = self._marks(shard, starts[rows], self._num_read)
        return narrow, ends - starts, marks

    def _marks(self, shard: OpenShard, starts: Ints, length: int) -> NDArray[np.bool_] | None:
        """Mark documents' first tokens, but for a row's first: [n, length]."""
        if not self._reads_documents:
            return None
        marks = np.zeros((len(starts), length), np.bool_)
        first, end = np.searchsorted(shard.ends, [starts + 1, starts + length])
        counts = end - first
        rows = np.repeat(np.arange(len(starts)), counts)
        which = np.arange(len(rows)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        marks[rows, shard.ends[which] - starts[rows]] = True
        return marks

    def _read_packed(self, shards: Ints, places: Places) -> Read:
        """Read rows piece by piece."""
        narrow = np.zeros((len(shards), self.window_len), self._dtype)
        marks = np.zeros(narrow.shape, np.bool_) if self._reads_documents else None
        lengths = np.zeros(len(shards), np.int64)
        each = (array.tolist() for array in (shards, places.sources, places.regions, places.windows))
        for row, (shard, source, region, window) in enumerate(zip(*each, strict=True)):
            plan, filled = self.sources[source].windows, 0
            assert isinstance(plan, Packed)
            for start, length in plan.pieces(region, window):
                narrow[row, filled : filled + length] = self._shard(shard).tokens[start : start + length]
                if marks is not None:
                    marks[row, filled] = filled > 0
                filled += length
            lengths[row] = filled
        return narrow, lengths, marks  # lengths even if all rows are full: every batch has the same arrays

    def _read_whole(self, shards: Ints, places: Places) -> Read:
        """Read rows of a document each, shard by shard."""
        narrow = np.zeros((len(shards), self.window_len), self._dtype)
        lengths = np.zeros(len(shards), np.int64)
        for number in np.unique(shards).tolist():
            shard, rows = self._shard(number), np.flatnonzero(shards == number)
            windows = places.windows[rows]
            ends = shard.ends[windows]
            starts = np.where(windows > 0, shard.ends[np.maximum(windows, 1) - 1], 0)
            lengths[rows] = ends - starts
            if (longest := int(lengths[rows].max())) > self.window_len:
                source, region = self._regions[number]
                why = f"a record of {longest} numbers, where {self.window_len} are the most"
                raise BadShard(region.shard.file, f"{source.corpus.folder}: {why}; remove this folder", source.name)
            narrow[rows] = shard.stretches(starts, ends, self.window_len)
        return narrow, lengths, None

    def _shard(self, number: int, check: bool = False) -> OpenShard:
        """Return an open shard; `check` looks whether its files have been cut off since."""
        source, region = self._regions[number]
        try:
            if (shard := self._open.get(number)) is None:
                while len(self._open) >= MOST_OPEN:
                    self._open.pop(next(iter(self._open)))
                reads_ends = self._reads_documents or self._windows is Whole
                shard = self._open[number] = OpenShard(source.corpus, region, reads_ends)
            elif check:
                shard.check()
        except BadShard as bad:
            raise BadShard(bad.file, str(bad), source.name) from None
        return shard

    def _refuse_ids(self, shards: Ints, narrow: NDArray[Any]) -> None:
        row = int(narrow.max(axis=1).argmax())
        source, region = self._regions[shards[row]]
        file, what = region.shard.file, f"token {narrow[row].max()}, the vocabulary has {self.vocab_size} entries"
        why = f"{file} of {source.corpus.folder}: holds {what}; the file is damaged, or belongs to another tokenizer"
        raise BadShard(file, why, source.name)
