"""Order: every window exactly once an epoch, in another order each epoch, as a pure function of the position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.order import permute, window_at


@given(size=st.integers(1, 3000), key=st.integers(0, 99))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size, dtype=np.uint64), size, key).tolist()) == list(range(size))


@given(size=st.integers(2, 1 << 50), data=st.data())
def test_permute_of_some_is_some_of_permute(size: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), dtype=np.uint64)
    together = permute(indices, size, "k")
    assert together.tolist() == [int(permute(indices[i : i + 1], size, "k")[0]) for i in range(len(indices))]
    assert (together < size).all()


@given(num_windows=st.integers(1, 300), epochs=st.integers(1, 4), batch=st.integers(1, 64))
def test_every_window_once_an_epoch_however_batches_cut_it(num_windows: int, epochs: int, batch: int) -> None:
    seen = []
    for first in range(0, num_windows * epochs, batch):
        positions = np.arange(first, min(first + batch, num_windows * epochs), dtype=np.uint64)
        epoch, window = window_at(positions, num_windows, seed=3)
        seen += list(zip(epoch.tolist(), window.tolist(), strict=True))
    assert sorted(seen) == [(e, w) for e in range(epochs) for w in range(num_windows)]
    assert [e for e, _ in seen] == sorted(e for e, _ in seen)


def test_order_looks_random_and_differs_by_epoch_and_seed() -> None:
    n = 5000
    positions = np.arange(n, dtype=np.uint64)
    orders = [window_at(positions + np.uint64(e * n), n, seed)[1] for e, seed in ((0, 0), (1, 0), (0, 1))]
    for order in orders:  # standard error of a rank correlation: 1/sqrt(n) = 0.014
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.06
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06
        assert abs(np.abs(np.diff(order)).mean() / n - 1 / 3) < 0.02
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < 0.06
        assert (orders[a] == orders[b]).sum() < 10
