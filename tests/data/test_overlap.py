"""Runs of tokens that a text and a training corpus have in common."""

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.overlap import Overlap, found_in, runs
from sslm.data.token_documents import TokenPiece

few = st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=5)


def pieces_of(documents: list[list[int]], cut: int) -> Iterator[TokenPiece]:
    for number, ids in enumerate(documents):
        starts = range(0, max(len(ids), 1), cut)
        for start in starts:
            part = np.array(ids[start : start + cut], np.int64)
            yield TokenPiece(number, part, len(part), start == starts[-1])


def runs_of(ids: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)}


@given(few, st.integers(1, 5), st.integers(1, 40))
def test_each_run_of_a_document_is_hashed_once_however_it_is_cut(texts: list[list[int]], n: int, cut: int) -> None:
    whole = [(number, hashed) for number, some in runs(pieces_of(texts, 99), n) for hashed in some.tolist()]
    parts = [(number, hashed) for number, some in runs(pieces_of(texts, cut), n) for hashed in some.tolist()]
    assert parts == whole
    every = [(number, tuple(text[i : i + n])) for number, text in enumerate(texts) for i in range(len(text) - n + 1)]
    assert len(whole) == len(every)
    assert len({hashed for _, hashed in whole}) == len({run for _, run in every})


@given(few, few, st.integers(1, 40))
def test_a_document_is_dirty_if_any_of_its_runs_stands_in_the_training_text(
    texts: list[list[int]], training: list[list[int]], cut: int
) -> None:
    overlap = Overlap.of(pieces_of(texts, cut))
    known = set().union(*(runs_of(text, 13) for text in training))
    dirty = sum(bool(runs_of(text, 13) & known) for text in texts)
    assert overlap.dirty(found_in(pieces_of(training, cut), overlap.hashes)) == dirty
    assert overlap.num_documents == sum(len(text) >= 13 for text in texts)
