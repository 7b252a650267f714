"""From the signatures of all blocks to a decision for each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates.decision import EXACT, KEPT, NEAR, decision_file, write_decision
from sslm.data.cleaning.duplicates.minhash import NO_WORDS
from sslm.data.cleaning.duplicates.partitions import Partitions
from sslm.data.cleaning.duplicates.repeats import NUMBER_BITS, Places, repeated_lines, repeated_passages, repeats, unite
from sslm.data.cleaning.duplicates.settings import Deduplication
from sslm.system.errors import UserError


def resolve(
    blocks: Sequence[Path],
    settings: Deduplication,
    work: Path,
    progress: Callable[[float], object] = lambda share: None,
) -> None:
    """Decide what goes, and write the decision about each block beside its signatures.

    Memory: 40 bytes a document, and at most 0.5 GB up to 2^31 lines or words; more if one line or passage has more than
    10^7 copies. Disk: 16 bytes a document, line and word, in `work`. A killed call leaves files that the next one
    replaces; decisions count when this returns.

    Args:
        blocks: the files of the signatures, in the order of the corpus.
        work: a folder for files that are gone at the end.
        progress: hears the share of the work that is done.

    Raises:
        UserError: signatures were made with other settings.
    """
    _Resolution(list(blocks), settings, work, progress).run()


@dataclass
class _Resolution:
    blocks: list[Path]
    settings: Deduplication
    work: Path
    progress: Callable[[float], object]

    def run(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self._reads = 0
        self._count()
        if "exact" in self.settings.methods:
            self._drop_exact()
        if "minhash" in self.settings.methods:
            self._drop_near()
        folder = self.work / "going"
        num = min(len(self.blocks), 64) or 1
        with Partitions(folder / "lines", num, 1) as lines, Partitions(folder / "passages", num, 1) as passages:
            if "lines" in self.settings.methods:
                self._gather("line", lines, lambda found: repeated_lines(found, self.settings.line_documents))
            if "substrings" in self.settings.methods:
                length = self.settings.substring_words
                self._gather("passage", passages, lambda found: repeated_passages(found, length))
            self._write(lines, passages)

    def _count(self) -> None:
        counts = []
        for _, texts in self._read("texts"):
            counts.append(len(texts))
        self.firsts = np.cumsum([0, *counts])  # [blocks + 1] documents before each
        self.kept_as = np.arange(self.firsts[-1])
        self.fate = np.full(len(self.kept_as), KEPT, np.uint8)

    def _read(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Read (block, its arrays of these names), block by block."""
        for number, block in enumerate(self.blocks):
            with np.load(block) as arrays:
                if arrays["settings"] != self.settings.fingerprint:
                    raise UserError(f"{block} was made with other settings or another version; remove it and run again")
                yield number, *(arrays[name] for name in names)
            self._reads += 1
            self.progress(min(self._reads / (self._num_passes * max(len(self.blocks), 1)), 1.0))

    @property
    def _num_passes(self) -> int:
        """How often the blocks are read."""
        passes = {"exact": 1, "minhash": self.settings.bands, "lines": 2, "substrings": 2}
        return 1 + sum(passes[method] for method in set(self.settings.methods))

    def _drop_exact(self) -> None:
        with self._partitions(len(self.kept_as), 3) as partitions:
            for number, texts in self._read("texts"):
                documents = np.arange(*self.firsts[number : number + 2]).view(np.uint64)
                partitions.add_by_key(np.column_stack([documents, texts]))
            for part in range(len(partitions)):
                some, firsts = repeats(partitions.read(part))
                self.kept_as[some] = firsts
        self.fate[self.kept_as != np.arange(len(self.kept_as))] = EXACT

    def _drop_near(self) -> None:
        for band in range(self.settings.bands):
            with self._partitions(len(self.kept_as), 2) as partitions:
                for number, keys in self._read(f"band-{band}"):
                    documents = np.arange(*self.firsts[number : number + 2]).view(np.uint64)
                    partitions.add_by_key(np.column_stack([documents, keys])[keys != NO_WORDS])
                for part in range(len(partitions)):
                    unite(self.kept_as, *repeats(partitions.read(part)))
        self.fate[(self.kept_as != np.arange(len(self.kept_as))) & (self.fate == KEPT)] = NEAR

    def _gather(self, what: str, going: Partitions, find: Callable[[NDArray[np.uint64]], Places]) -> None:
        """Find the places of lines or passages that go, and put them into files by block."""
        num = sum(int(counts.sum()) for _, counts in self._read(f"{what}_counts"))
        with self._partitions(num, 2) as partitions:
            names = (f"{what}s", f"{what}_counts", *(["line_numbers"] if what == "line" else []))
            for block, keys, counts, *numbers in self._read(*names):
                documents = np.repeat(np.arange(*self.firsts[block : block + 2]), counts)
                places = documents << NUMBER_BITS | (numbers[0].astype(np.int64) if numbers else _numbered(counts))
                records = np.column_stack([places.view(np.uint64), keys])
                partitions.add_by_key(records[self.fate[documents] == KEPT])
            for part in range(len(partitions)):
                found = find(partitions.read(part))
                blocks = np.searchsorted(self.firsts, found >> NUMBER_BITS, "right") - 1
                going.add(found.view(np.uint64)[:, None], blocks % len(going))

    def _partitions(self, num_records: int, columns: int) -> Partitions:
        return Partitions(self.work / "sorting", Partitions.num_for(num_records), columns)

    def _write(self, lines: Partitions, passages: Partitions) -> None:
        for part in range(len(lines)):
            going_lines, going_passages = (np.sort(each.read(part)[:, 0].view(np.int64)) for each in (lines, passages))
            for number in range(part, len(self.blocks), len(lines)):
                begin, end = self.firsts[number : number + 2]
                decision = {
                    "fate": self.fate[begin:end],
                    "kept_as": self.kept_as[begin:end],
                    "lines": np.column_stack(_split(_of_block(going_lines, begin, end))),
                    "passages": _joined(_of_block(going_passages, begin, end), self.settings.substring_words),
                }
                write_decision(decision_file(self.blocks[number]), decision)


def _numbered(counts: Places) -> Places:
    """Number the passages of each document from 0."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _of_block(places: Places, begin: int, end: int) -> Places:
    """Select sorted places in documents of a block, and count these from its first."""
    first, last = np.searchsorted(places, [begin << NUMBER_BITS, end << NUMBER_BITS])
    return places[first:last] - (begin << NUMBER_BITS)


def _split(places: Places) -> tuple[Places, Places]:
    """Return documents, and numbers of lines or words in them."""
    return places >> NUMBER_BITS, places & ((1 << NUMBER_BITS) - 1)


def _joined(places: Places, length: int) -> Places:
    """Join passages that meet: [passages, 3] text, first word, the word after the last."""
    is_first = np.diff(places, prepend=-(1 << NUMBER_BITS)) > length
    is_last = np.roll(is_first, -1)
    documents, words = _split(places)
    return np.column_stack([documents[is_first], words[is_first], words[is_last] + length])
