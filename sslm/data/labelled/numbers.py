"""Texts, or pairs of texts, and a number that each has: a grade, a similarity."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Tally
from sslm.data.labelled.classes import framed, text_columns
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.task import Column, Example, Missing, Record, Task
from sslm.data.labelled.values import Row


@dataclass(frozen=True)
class Numbers(Task):
    """One number a row, kept as the bits of its fp32."""

    name: ClassVar[str] = "regression"
    fields: ClassVar[tuple[str, ...]] = ("row", "input_ids", "token_type_ids", "labels")
    has_names: ClassVar[bool] = False

    def columns(self, data: DataConfig) -> list[Column]:
        return [*text_columns(data), Column("label", "data.label_field", (data.label_field or "label",))]

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        target = row.number("label")
        if target is None and not is_complete:
            raise Missing("without a number")
        pair = row.text("pair") if data.pair_field is not None else None
        return Example(number, row.where, row.text("text"), pair, target=target)

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        targets = [math.nan if example.target is None else example.target for example in examples]
        words = np.array(targets, np.float32).view(np.uint32).tolist()
        for example, encoded, word in zip(examples, framed(examples, encoder, self.seq_len), words, strict=True):
            yield [[[example.row], encoded.ids, encoded.types, [word]]], encoded.was_cut

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return self.seq_len, self.seq_len, 1

    def tally(self, examples: Sequence[Example], numbers: dict[str, int]) -> Tally:
        targets = [example.target for example in examples if example.target is not None]
        return Tally(len(examples), (), len(targets), math.fsum(targets), math.fsum(x * x for x in targets))
