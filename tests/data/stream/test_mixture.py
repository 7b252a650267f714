"""Mixtures: exact shares over every stretch, places found without replay, stages, weights as people type them."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.config import SourceConfig
from sslm.data.stream.mixture import MOST_PARTS, Mixture, Stage, parse_weights, source_names, whole_weights
from sslm.system.errors import UserError

WEIGHTS = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 40), min_size=n, max_size=n).filter(any), min_size=1, max_size=4)
)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    position, stages = 0, []
    for weights in draw(WEIGHTS):
        stages.append(Stage(position, tuple(weights)))
        position += draw(st.integers(1, 200))
    return Mixture(tuple(stages))


@given(mixture=mixtures())
def test_each_source_counts_up_and_is_less_than_one_example_from_its_share(mixture: Mixture) -> None:
    end = 1000
    sources, numbers = mixture.at(np.arange(end))
    for source in range(len(mixture.stages[0].weights)):
        assert (numbers[sources == source] == np.arange((sources == source).sum())).all()
    for number, stage in enumerate(mixture.stages):
        last = mixture.stages[number + 1].position if number + 1 < len(mixture.stages) else end
        weights = np.array(stage.weights)
        drawn = np.cumsum(sources[stage.position : last, None] == np.arange(len(weights)), axis=0)
        wanted = np.arange(1, last - stage.position + 1)[:, None] * weights / weights.sum()
        assert np.abs(drawn - wanted).max(initial=0) < 1
        assert (drawn[:, weights == 0] == 0).all()


@given(mixture=mixtures(), position=st.integers(0, 10**12))
def test_a_place_is_found_without_what_came_before(mixture: Mixture, position: int) -> None:
    around = np.arange(position, position + 50)
    sources, numbers = mixture.at(around)
    for offset in (0, 7, 49):
        alone = mixture.at(around[offset : offset + 1])
        assert (alone[0][0], alone[1][0]) == (sources[offset], numbers[offset])
        counts = mixture.examples_before(position + offset)
        assert counts[sources[offset]] == numbers[offset]
        assert sum(counts) == position + offset


def test_weights_are_as_people_type_them() -> None:
    assert parse_weights([1, 1], [10, 20]) == (1, 1)
    assert parse_weights([0.7, "0.3"], [10, 20]) == (7, 3)
    assert parse_weights(["size", "size^1"], [100, 300]) == (1, 3)
    assert parse_weights(["size^0.5", "size^0.5", 0], [900, 100, 5]) == (3, 1, 0)
    fine = parse_weights(["size^0.7", "size^0.7"], [10**12, 10**6])
    assert fine[1] >= 1
    assert sum(fine) <= MOST_PARTS + 1
    assert whole_weights([Fraction(10**9), Fraction(1)])[1] == 1


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ([-1, 2], "-1"),
        (["size^x", "size^1"], "size^x"),
        (["much", 1], "much"),
        ([0, 0], "all weights are 0"),
        (["size^0.5", 2], "mix numbers and powers"),
        ([float("nan"), 1], "nan"),
        ([float("inf"), 1], "inf"),
        ([True, "siz"], "siz"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float | str], word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        parse_weights(weights, [10, 10])


def test_names_come_from_paths_and_must_differ() -> None:
    assert source_names([SourceConfig("a/web.jsonl.zst"), SourceConfig("s3://b/code/")]) == ["web", "code"]
    assert source_names([SourceConfig("a")]) == [""]
    with pytest.raises(UserError, match="called web"):
        source_names([SourceConfig("a/web"), SourceConfig("b/web")])
