"""Windows of documents, and figures with their standard errors."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.models.network import IGNORED
from sslm.models.scoring import (
    LOSS,
    WORD_LOSS,
    Frame,
    Ints,
    Row,
    causal_rows,
    consecutive_rows,
    in_batches,
    masked_rows,
)
from sslm.models.standard_error import Ratio


class Part(NamedTuple):
    document: int
    ids: Ints
    num_bytes: float
    is_end: bool


def parts_of(documents: list[list[int]], cut: int) -> Iterator[Part]:
    for number, ids in enumerate(documents):
        starts = range(0, max(len(ids), 1), cut)
        for start in starts:
            part = np.array(ids[start : start + cut], np.int64)
            yield Part(number, part, len(part), start == starts[-1])


documents = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=40), min_size=1, max_size=4)


def test_the_docstrings_example() -> None:
    rows = causal_rows(parts_of([[1, 2, 3, 4, 5, 6, 7]], 99), before=[9], seq_len=4, stride=2)
    assert [(row.ids.tolist(), row.labels.tolist()) for row in rows if row.labels is not None] == [
        ([9, 1, 2, 3], [1, 2, 3, 4]),
        ([2, 3, 4, 5], [IGNORED, IGNORED, 5, 6]),
        ([3, 4, 5, 6], [IGNORED, IGNORED, IGNORED, 7]),
    ]


@given(documents, st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(1, 45))
def test_each_token_is_predicted_once_with_as_much_before_it_as_there_is(
    texts: list[list[int]], seq_len: int, stride: int, begins: bool, cut: int
) -> None:
    stride, before = min(stride, seq_len), [5] if begins else []
    found: list[list[int]] = [[] for _ in texts]
    for row in causal_rows(parts_of(texts, cut), before, seq_len, stride):
        whole = [*before, *texts[row.document]]
        assert row.labels is not None
        assert len(row.ids) == len(row.labels) <= seq_len
        for place in np.flatnonzero(row.labels != IGNORED):
            found[row.document].append(int(row.labels[place]))
            end, seen = len(found[row.document]), row.ids[: place + 1].tolist()
            assert seen == whole[:end][-len(seen) :]
            assert len(seen) >= min(seq_len - stride + 1, end)
    assert found == [text[1 - len(before) :] for text in texts]


def frame() -> Frame:
    return Frame(np.array([2]), np.array([3]), 4, lambda ids: ids < 50)  # from 50 on a token goes on with a word


@given(documents, st.integers(3, 14), st.integers(1, 45))
def test_each_token_is_hidden_alone_and_with_the_rest_of_its_word(
    texts: list[list[int]], seq_len: int, cut: int
) -> None:
    found: dict[str, list[list[int]]] = {name: [[] for _ in texts] for name in (LOSS, WORD_LOSS)}
    for row in masked_rows(parts_of(texts, cut), frame(), seq_len):
        assert row.labels is not None
        (place,) = np.flatnonzero(row.labels != IGNORED)
        assert row.ids[0] == 2
        assert row.ids[-1] == 3
        assert len(row.ids) <= seq_len
        hidden = np.flatnonzero(row.ids == 4)
        assert hidden[0] == place
        assert (np.diff(hidden) == 1).all()
        for name in row.counts_for:
            found[name][row.document].append(int(row.labels[place]))
        after = place + len(hidden)
        if WORD_LOSS in row.counts_for:
            assert after == len(row.ids) - 1 or row.ids[after] < 50
        else:
            assert len(hidden) == 1
    assert found[LOSS] == texts
    assert [sorted(some) for some in found[WORD_LOSS]] == [sorted(text) for text in texts]


def test_within_a_word_later_tokens_are_hidden_too() -> None:
    rows = list(masked_rows(parts_of([[10, 60, 61, 11]], 9), frame(), 16))
    assert [(row.ids[1:-1].tolist(), row.counts_for) for row in rows] == [
        ([4, 60, 61, 11], (LOSS,)),
        ([4, 4, 4, 11], (WORD_LOSS,)),
        ([10, 4, 61, 11], (LOSS,)),
        ([10, 4, 4, 11], (WORD_LOSS,)),
        ([10, 60, 4, 11], (LOSS, WORD_LOSS)),
        ([10, 60, 61, 4], (LOSS, WORD_LOSS)),
    ]


@given(documents, st.integers(1, 12), st.integers(1, 45))
def test_consecutive_windows_hold_each_token_once(texts: list[list[int]], length: int, cut: int) -> None:
    rows = list(consecutive_rows(parts_of(texts, cut), length))
    for number, text in enumerate(texts):
        assert [token for row in rows if row.document == number for token in row.ids.tolist()] == text
    assert [row.position for row in rows] == list(range(len(rows)))


@given(st.lists(st.integers(1, 30), max_size=300), st.one_of(st.none(), st.integers(1, 9)))
def test_batches_hold_each_row_once_and_stay_in_their_size(lengths: list[int], size: int | None) -> None:
    rows = [Row(number, np.zeros(length, np.int64)) for number, length in enumerate(lengths)]
    batches = list(in_batches(rows, size, batch_tokens=32))
    assert sorted(row.document for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) <= size if size else len(batch) * max(len(row.ids) for row in batch) <= 32


def test_the_standard_error_is_that_of_many_samples() -> None:
    random = np.random.default_rng(0)

    def sample() -> Ratio:
        ratio = Ratio()
        for _ in range(200):
            y = random.integers(1, 50)
            ratio.add(y * random.gamma(9, 1 / 3), y)
        return ratio

    estimates = [sample().estimate() for _ in range(300)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.1)
    (one := Ratio()).add(3.0, 2.0)
    assert math.isnan(one.estimate().stderr)
    assert math.isnan(Ratio().estimate().value)
