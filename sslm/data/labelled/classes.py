"""Texts, or pairs of texts, and the classes that they belong to: one each, or any number of labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sslm.config import DataConfig
from sslm.data.labelled.encoder import Encoded, Encoder
from sslm.data.labelled.task import Column, Example, Missing, Record, Task
from sslm.data.labelled.values import Row

SEVERAL = "; for several labels at once: --objective.multi_label true"
BITS = 32


def text_columns(data: DataConfig) -> list[Column]:
    """List the fields of a text, or of a pair."""
    text = Column("text", "data.text_field", (data.text_field,))
    return [text] if data.pair_field is None else [text, Column("pair", "data.pair_field", (data.pair_field,))]


def framed(examples: Sequence[Example], encoder: Encoder, seq_len: int) -> list[Encoded]:
    """Frame the examples' texts, or pairs, in the tokenizer's template."""
    is_pair = examples[0].pair is not None
    pairs = [example.pair or "" for example in examples] if is_pair else None
    return encoder.framed([example.text for example in examples], pairs, seq_len)


@dataclass(frozen=True)
class Classes(Task):
    """One label a row, or any number of them."""

    multi_label: bool = False

    name: ClassVar[str] = "classification"
    fields: ClassVar[tuple[str, ...]] = ("row", "input_ids", "token_type_ids", "labels")

    @property
    def is_one_each(self) -> bool:
        return not self.multi_label

    @property
    def least_names(self) -> int:
        return 1 if self.multi_label else 2

    def columns(self, data: DataConfig) -> list[Column]:
        return [*text_columns(data), Column("label", "data.label_field", (data.label_field or "label",))]

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        pair = row.text("pair") if data.pair_field is not None else None
        if self.multi_label:
            labels = row.labels("label", data.label_separator)
        else:
            label = row.label("label", SEVERAL)
            if label is None and not is_complete:
                raise Missing("without a label")
            labels = () if label is None else (label,)
        return Example(number, row.where, row.text("text"), pair, labels)

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        for example, (ids, types, was_cut) in zip(examples, framed(examples, encoder, self.seq_len), strict=True):
            labels = [numbers[name] for name in example.labels]
            if self.multi_label:
                labels = bits(labels, len(numbers))
            yield [[[example.row], ids, types, labels]], was_cut

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return self.seq_len, self.seq_len, -(-num_labels // BITS) if self.multi_label else 1


def bits(labels: Sequence[int], num_labels: int) -> list[int]:
    """Set one bit a label, in words of 32.

    >>> bits([0, 2, 33], 40)
    [5, 2]
    """
    words = [0] * -(-num_labels // BITS)
    for label in labels:
        words[label // BITS] |= 1 << label % BITS
    return words
