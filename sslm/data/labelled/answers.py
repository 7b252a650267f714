"""Questions whose answers are spans of a context, or that have none (Rajpurkar et al. 2016, 2018: SQuAD).

A context that is too long becomes several records, windows that overlap; one that doesn't hold the whole answer has
none (Devlin et al. 2018, section 4.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Tally
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.split import hash64
from sslm.data.labelled.task import Column, Example, Missing, Record, Task
from sslm.data.labelled.values import Row, kind_of, sound
from sslm.system.errors import UserError

Span = tuple[int, int]
"""(first character, the one after the last)"""
NO_ANSWER = (0, 0)


@dataclass(frozen=True)
class Answers(Task):
    """A span of the context a question, or none."""

    overlap: int = 128

    name: ClassVar[str] = "extraction"
    fields: ClassVar[tuple[str, ...]] = ("row", "input_ids", "token_type_ids", "starts", "ends", "labels")
    """`starts` and `ends`: of the context's tokens, their characters in it; `ends` is 0 of all other tokens."""
    has_names: ClassVar[bool] = False
    is_counted: ClassVar[bool] = False
    targets_are_places: ClassVar[bool] = True
    has_windows: ClassVar[bool] = True
    cut_in_words: ClassVar[str] = "cut into windows"

    def columns(self, data: DataConfig) -> list[Column]:
        context = (data.text_field,) if data.text_field != DataConfig.text_field else ("context", "text")
        answers = (data.label_field,) if data.label_field else ("answers", "answer")
        return [
            Column("text", "data.text_field", context),
            Column("pair", "data.pair_field", (data.pair_field or "question",)),
            Column("label", "data.label_field", answers),
        ]

    def example(self, number: int, row: Row, data: DataConfig, is_complete: bool) -> Example:
        context = row.text("text")
        answers = list(answers_of(row)) if "label" in row.columns else []
        spans = spans_of(answers, context) if "label" in row.columns else None
        if spans is None and not is_complete:
            raise Missing("whose answer is not in the context")
        group = hash64(context) >> 1  # an int64
        target = None if spans is None else [*spans, NO_ANSWER][0]
        texts = tuple(dict.fromkeys(text for text, _ in answers))
        return Example(number, row.where, context, row.text("pair"), target=target, answers=texts, group=group)

    def records(
        self, examples: Sequence[Example], encoder: Encoder, numbers: dict[str, int]
    ) -> Iterator[tuple[list[Record], bool]]:
        room = self.seq_len - encoder.tokenizer.num_special_tokens_to_add(True)
        questions = [example.pair or "" for example in examples]
        with_overlap: dict[int, list[int]] = {}
        for i, ids in enumerate(encoder.plain(questions)):
            if len(ids) > room // 2:  # half of the window is the context's
                questions[i] = _beginning(encoder, questions[i], room // 2)
            in_context = room - min(len(ids), room // 2)
            with_overlap.setdefault(min(self.overlap, in_context // 2), []).append(i)
        found: dict[int, Any] = {}
        for overlap, some in with_overlap.items():
            texts = [questions[i] for i in some], [examples[i].text for i in some]
            found |= zip(some, encoder.encodings(*texts, self.seq_len, "only_second", overlap), strict=True)
        for i, example in enumerate(examples):
            windows = [found[i], *found[i].overflowing]
            yield [self._record(example, window, encoder) for window in windows], len(windows) > 1

    def _record(self, example: Example, window: Any, encoder: Encoder) -> Record:
        ids, types, _ = encoder.encoded(window)
        is_context = [sequence == 1 for sequence in window.sequence_ids]
        starts = [start if here else 0 for (start, _), here in zip(window.offsets, is_context, strict=True)]
        ends = [end if here else 0 for (_, end), here in zip(window.offsets, is_context, strict=True)]
        labels = [] if example.target is None else places_of(example.target, starts, ends)
        return [[example.row], ids, types, starts, ends, labels]

    def capacities(self, num_labels: int) -> tuple[int, ...]:
        return (*[self.seq_len] * 4, 2)

    def tally(self, examples: Sequence[Example], numbers: dict[str, int]) -> Tally:
        return Tally(len(examples))


def _beginning(encoder: Encoder, text: str, most: int) -> str:
    """Cut a text after its first tokens, so that no more than `most` are left."""
    while len(ids := encoder.plain([text])[0]) > most:
        [found] = encoder.encodings([text], None, most + encoder.tokenizer.num_special_tokens_to_add(False))
        end = max(
            (end for (_, end), part in zip(found.offsets, found.sequence_ids, strict=True) if part == 0), default=0
        )
        text = text[: min(end, len(text) - 1)] if len(ids) > most else text
    return text


def places_of(span: Span, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Find the first and the last token of a span; [0, 0], the place of [CLS], if they are not all there.

    >>> places_of((4, 8), [0, 0, 0, 4, 7], [0, 0, 3, 6, 9])
    [3, 4]
    """
    first, end = span
    context = [place for place, last in enumerate(ends) if last > 0]
    if first == end or not context or starts[context[0]] > first or ends[context[-1]] < end:
        return [0, 0]
    inside = [place for place in context if starts[place] < end and ends[place] > first]
    return [inside[0], inside[-1]] if inside else [0, 0]


def spans_of(answers: Sequence[tuple[str, int]], context: str) -> list[Span] | None:
    """Find a question's answers in its context: an empty list if it has none, None if they don't stand there."""
    spans = []
    for text, start in answers:
        if (found := nearest_place(context, text, start)) is not None:
            spans.append((found, found + len(text)))
    return None if answers and not spans else spans


def answers_of(row: Row) -> Iterator[tuple[str, int]]:
    """Yield the answers and where they are said to begin (−1: anywhere), in each of the forms that there are.

    SQuAD's {"text": […], "answer_start": […]}, a list of {"text", "answer_start"}, texts, or a single one.

    Raises:
        UserError: what is there can't be answers.
    """
    value = row.values.get("label")
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start") or [-1] * len(value["text"])
        value = [{"text": text, "answer_start": start} for text, start in zip(value["text"], starts, strict=False)]
    for answer in value if isinstance(value, list) else [value]:
        text = answer.get("text") if isinstance(answer, dict) else answer
        start = answer.get("answer_start", -1) if isinstance(answer, dict) else -1
        if text is not None and not isinstance(text, str):
            raise UserError(f"{row.place('label')} holds {kind_of(text)}, not the text of an answer")
        if text:
            yield sound(text), start if isinstance(start, int) else -1


def text_at(context: str, start: int, end: int) -> tuple[str, int]:
    """Return a context's text at a span of tokens, without white space at its edges, and where it begins.

    >>> text_at("who is it", 3, 6)
    ('is', 4)
    """
    text = context[start:end]
    return text.strip(), start + len(text) - len(text.lstrip())  # a token may begin with the space before its word


def nearest_place(context: str, text: str, start: int) -> int | None:
    """Find where a text stands nearest to where it should; None if it doesn't.

    >>> nearest_place("a b a", "a", 3), nearest_place("a b a", "a", -1)
    (4, 0)
    """
    if start >= 0 and context.startswith(text, start):
        return start
    before, after = context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, max(start, 0))
    found = [place for place in (before, after) if place >= 0]
    return min(found, key=lambda place: abs(place - start), default=None)
