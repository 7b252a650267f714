"""Texts and what to make of each: translations, summaries, answers; for encoder–decoders, and for causal models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Tally
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.task import Column, Columns, Example, Missing, Record, Task
from sslm.data.labelled.values import Row


@dataclass(frozen=True)
class Texts(Task):
    """A text to read and a text to write, each framed by the tokenizer, with an end at least."""

    target_len: int | None = None
    """Longest target in tokens; None: as long as the source may be."""
    prefix: str = ""
    """What stands before each source."""
    leaves_room: bool = False
    """Whether each source leaves room for the longest target, as if its own were not known."""

    name: ClassVar[str] = "text_to_text"
    fields: ClassVar[tuple[str, ...]] = ("row", "input_ids", "labels")
    """The second is what a model reads before it writes."""
    has_names: ClassVar[bool] = False
    is_counted: ClassVar[bool] = False
    labels_have: ClassVar[Columns] = "target tokens"

    def to_predict(self) -> Task:
        return replace(self, leaves_room=True)

    def columns(self, data: DataConfig) -> list[Column]:
        target = Column("target", "data.target_field", (data.target_field,))
        return [Column("source", "data.source_field", (data.source_field,)), target]

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        target = row.text("target")
        if not target and not is_complete:
            raise Missing("without a text to write")
        return Example(number, row.where, self.prefix + row.text("source"), target)

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        sources = self._with_end([example.text for example in examples], encoder, self.seq_len)
        targets = self._with_end([example.pair or "" for example in examples], encoder, self.most_written)
        for example, (source, cut), (target, target_cut) in zip(examples, sources, targets, strict=True):
            yield [[[example.row], source, target]], cut or target_cut

    @property
    def most_written(self) -> int:
        """Largest number of a target's tokens."""
        return self.seq_len if self.target_len is None else self.target_len

    def _with_end(self, texts: Sequence[str], encoder: Encoder, most: int) -> list[tuple[list[int], bool]]:
        """Frame texts, and end them if the tokenizer doesn't."""
        missing = [] if encoder.end in encoder.after else [encoder.end]
        framed = encoder.framed(texts, None, most - len(missing))
        return [(ids if ids == missing else ids + missing, was_cut) for ids, _, was_cut in framed]

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return self.seq_len, self.most_written

    def tally(self, examples: Sequence[Example], numbers: dict[str, int]) -> Tally:
        return Tally(len(examples))


@dataclass(frozen=True)
class Continuations(Texts):
    """A text to read and, after a separator, what a causal model is to write: together at most seq_len + 1 tokens."""

    separator: str = "\n"
    """What stands between a source and its target."""

    fields: ClassVar[tuple[str, ...]] = ("row", "source", "labels")
    labels_have: ClassVar[Columns] = "input tokens"

    @property
    def most_written(self) -> int:
        return max(self.seq_len // 2, 1) if self.target_len is None else min(self.target_len, self.seq_len)

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        """Make one record a row; a source that is too long loses what stands before the separator."""
        last = len(encoder.plain([self.separator])[0]) if self.separator else 0
        sources = encoder.plain([example.text + self.separator for example in examples])
        targets = encoder.plain([example.pair or "" for example in examples])
        for example, source, target in zip(examples, sources, targets, strict=True):
            written = [*target, encoder.end][: self.most_written]
            after = self.most_written if self.leaves_room else len(written)
            room = max(self.seq_len + 1 - after - len(encoder.before), 1)
            was_cut = len(source) > room or len(target) >= self.most_written
            if len(source) > room:
                source = source[: max(room - last, 0)] + source[len(source) - min(last, room) :]
            read = [*encoder.before, *source] or [encoder.end]
            yield [[[example.row], read, written]], was_cut

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return self.seq_len + 1, self.seq_len if self.target_len is None else self.target_len
