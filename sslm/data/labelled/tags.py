"""Sentences whose words are tagged (Tjong Kim Sang & De Meulder 2003): names, parts of speech.

Words are read as a text, with a space between any two, so that a model sees what it was pretrained on; a tag stands at
the first token of its word, and a word without a token (an empty one, a lone control character) has none. A sentence
that is too long becomes several records, windows that overlap; each word is tagged in the first that begins it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from sslm.config import DataConfig
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.task import Column, Columns, Example, Missing, Record, Task
from sslm.data.labelled.values import Row, label_of
from sslm.system.errors import UserError
from sslm.system.terminal import plural

OVERLAP = 4
"""One in so many of a window's tokens stood in the one before it already: they are read again, and not tagged."""
UNTAGGED = ""
"""Label of a word that has none."""


@dataclass(frozen=True)
class Tags(Task):
    """A tag a word."""

    name: ClassVar[str] = "tagging"
    fields: ClassVar[tuple[str, ...]] = ("row", "input_ids", "token_type_ids", "words", "labels")
    """`words`: 1 + the number of the word that begins with a token, else 0; `labels`: 1 + its tag's number, or 0."""
    labels_have: ClassVar[Columns] = "input tokens"
    has_windows: ClassVar[bool] = True
    cut_in_words: ClassVar[str] = "cut into windows"
    first_names: ClassVar[tuple[str, ...]] = ("O",)

    def columns(self, data: DataConfig) -> list[Column]:
        words = (
            (data.text_field,) if data.text_field != DataConfig.text_field else ("tokens", "words", "text", "FORM", "0")
        )
        tags = (data.label_field,) if data.label_field else ("tags", "ner_tags", "labels", "label", "UPOS", "-1")
        return [Column("text", "data.text_field", words), Column("label", "data.label_field", tags)]

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        words = row.words("text")
        if not words and not is_complete:
            raise Missing("without words")
        tags = [label_of(tag) or UNTAGGED for tag in row.items("label", str.split)]
        if is_complete and not tags:
            tags = [UNTAGGED] * len(words)
        if len(tags) != len(words):
            has = f"{plural(len(words), 'word')} and {plural(len(tags), 'tag')}"
            raise UserError(f"{row.where}: has {has}; each word needs one in {row.columns['label']!r}")
        return Example(number, row.where, words, labels=tuple(tags))

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        texts = [" ".join(example.text) for example in examples]
        room = self.seq_len - encoder.tokenizer.num_special_tokens_to_add(False)
        encodings = encoder.encodings(texts, None, self.seq_len, overlap=room // OVERLAP)
        for example, text, found in zip(examples, texts, encodings, strict=True):
            records: list[Record] = []
            last = 0
            for window in (found, *found.overflowing):
                ids, types, _ = encoder.encoded(window)
                words = first_pieces(window, text, example.text, last) or [0] * len(ids)
                labels = [1 + numbers.get(example.labels[word - 1], -1) if word else 0 for word in words]
                records.append([[example.row], ids, types, words, labels])
                last = max(last, *words)
            yield records, len(records) > 1

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return (self.seq_len,) * 4


def first_pieces(found: Any, text: str, words: Sequence[str], after: int = 0) -> list[int]:
    """Find the words that tokens begin: 1 + the word's number for the first token of each, else 0.

    Args:
        found: the text's encoding, or a window of it.
        text: the words, with a space between any two.
        words: what the text is made of.
        after: number of words that windows before this one have begun.
    """
    starts = [0, *accumulate(len(word) + 1 for word in words)][: len(words)]
    pieces = []
    for (start, end), sequence in zip(found.offsets, found.sequence_ids, strict=True):
        while start < end and text[start].isspace():
            start += 1
        word = bisect_right(starts, start) if sequence == 0 and start < end else 0
        pieces.append(word if word > after else 0)
        after = max(after, word)
    return pieces
