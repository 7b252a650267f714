"""Every window once an epoch, in another order each epoch, as a pure function of the example's number."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.stream.order import Order, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 99))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size, dtype=np.uint64), size, key).tolist()) == list(range(size))


@given(size=st.integers(2, 1 << 50), data=st.data())
def test_permute_of_some_is_some_of_permute(size: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), dtype=np.uint64)
    together = permute(indices, size, "k")
    assert together.tolist() == [int(permute(indices[i : i + 1], size, "k")[0]) for i in range(len(indices))]
    assert (together < size).all()


SHARDS = st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any)
BLOCKS = st.none() | st.integers(1, 10)


def in_order(order: Order, first: int, end: int) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in order.at(np.arange(first, end))), strict=True))


@given(shards=SHARDS, block=BLOCKS, epochs=st.integers(1, 3), batch=st.integers(9, 64))
def test_every_window_once_an_epoch_however_batches_cut_it(
    shards: list[int], block: int | None, epochs: int, batch: int
) -> None:
    order = Order(tuple(shards), (3,), block)
    end = sum(shards) * epochs
    seen = list(itertools.chain(*(in_order(order, first, min(first + batch, end)) for first in range(0, end, batch))))
    every = [(e, s, w) for e in range(epochs) for s, n in enumerate(shards) for w in range(n)]
    assert sorted(seen) == every
    assert [e for e, _, _ in seen] == sorted(e for e, _, _ in seen)


@given(shards=SHARDS, block=st.integers(1, 4), data=st.data())
def test_only_the_shards_of_the_blocks_at_hand_are_needed(shards: list[int], block: int, data: st.DataObject) -> None:
    order = Order(tuple(shards), (1,), block)
    first = data.draw(st.integers(0, 3 * sum(shards)))
    last = first + data.draw(st.integers(0, 30))
    at_hand = order.shards_between(first, last)
    needed = [shard for _, shard, _ in in_order(order, first, last + 1)]
    assert set(needed) <= set(at_hand)
    assert len(set(needed[:1])) <= block
    one = order.shards_between(first, first)
    assert len(one) <= 2 * block
    assert needed[0] in one[:block]


def test_blocks_bound_what_must_be_at_hand_and_shards_come_in_another_order_each_epoch() -> None:
    order = Order((40,) * 12, (5,), 3)
    epochs = [[s for _, s, _ in in_order(order, e * 480, (e + 1) * 480)] for e in range(2)]
    for shards in epochs:
        blocks = [sorted(set(shards[i : i + 120])) for i in range(0, 480, 120)]
        assert [len(block) for block in blocks] == [3] * 4
    assert epochs[0] != epochs[1]
    assert {tuple(sorted(set(epochs[0][i : i + 120]))) for i in (0, 120, 240, 360)} != {
        tuple(sorted(set(epochs[1][i : i + 120]))) for i in (0, 120, 240, 360)
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(abs(np.corrcoef(a, b)[0, 1]))


@pytest.mark.parametrize("size", [5000, 4096, 4097])
def test_order_is_as_random_as_a_true_permutation(size: int) -> None:
    """Within five standard errors of a true permutation: rank correlations, distance of neighbours, windows that stay.

    Correlated are order and position, neighbours, and the orders of two epochs and two seeds.
    """
    n, error = size, size**-0.5
    keys = [(0, 0), (1, 0), (0, 1)]
    orders = [Order((n,), (seed,)).at(np.arange(e * n, (e + 1) * n))[2] for e, seed in keys]
    for order in orders:
        assert correlation(np.arange(n), order) < 5 * error
        assert correlation(order[1:], order[:-1]) < 5 * error
        assert correlation(order[16:], order[:-16]) < 5 * error
        assert abs(np.abs(np.diff(order)).mean() / n - 1 / 3) < 5 * error * (1 / 18) ** 0.5
        thirds = np.histogram(order[: n // 3], bins=10, range=(0, n))[0]  # the first third of an epoch is from all over
        assert np.abs(thirds - n / 30).max() < 5 * (n / 30) ** 0.5
    for a, b in itertools.combinations(orders, 2):
        assert correlation(a, b) < 5 * error
        assert (a == b).sum() < 10


@pytest.mark.parametrize("size", [5, 7])
def test_small_permutations_are_about_equally_likely(size: int) -> None:
    """Chi-square over where element 0 and the pair (0, 1) land, 4,000 keys."""
    keys = 4000
    landed = np.array([permute(np.arange(2, dtype=np.uint64), size, "k", key) for key in range(keys)]).astype(int)
    for outcome, cells in ((landed[:, 0], size), (landed[:, 0] * size + landed[:, 1], size * (size - 1))):
        counts = np.unique(outcome, return_counts=True)[1]
        assert len(counts) == cells
        chi_square = ((counts - keys / cells) ** 2 / (keys / cells)).sum()
        assert chi_square < cells - 1 + 5 * (2 * (cells - 1)) ** 0.5


def test_look_up_takes_no_longer_at_the_end_of_a_large_corpus() -> None:
    """A million shards, the ten billionth window: no table of windows anywhere, equal alone and among others."""
    order = Order((10_000,) * 100_000, (0,))
    last = order.epoch_len * 7 - 1
    alone = order.at(np.array([last]))
    among = order.at(np.arange(last - 99, last + 1))
    assert [int(column[0]) for column in alone] == [int(column[-1]) for column in among]
    assert alone[0][0] == 6
