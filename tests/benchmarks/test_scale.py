"""The model of step time beside published tables, and the order of 1e13 tokens."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sslm.parallel.planning.step_time import Cluster, Work, ring_seconds, step_time

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MISSED = {
    ("MPT-1B, A100 40GB", 32),  # published as slower than the rows around it
    ("Llama 3 7B, tp 4, H200", 16),
    ("Llama 3 7B, tp 4, H200", 32),
    ("GPT 1.7B to 18.4B, A100 80GB", 128),
    ("GPT 1.7B to 18.4B, A100 80GB", 256),
}
"""Rows of tables that the model misses by more than 15 %, as docs/scale.md says."""


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("scale", "weak_scaling"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("path")
def test_published_tables_are_met_within_15_percent_but_for_the_rows_that_the_page_names() -> None:
    tables = import_module("weak_scaling")
    found: set[Any] = set()
    for table in tables.TABLES:
        rows = zip(table.rows, tables.predicted(table), strict=True)
        found |= {(table.name, row.devices) for row, speed in rows if abs(speed / row.speed - 1) > 0.15}
    assert found == MISSED
    assert len({table.name for table in tables.TABLES} - {name for name, _ in found}) >= 5


@pytest.mark.usefixtures("path")
def test_the_order_of_1e13_tokens_takes_bounded_memory_and_no_place_comes_twice() -> None:
    order = import_module("scale").order_of(1e13)
    assert order["shards"] > 74_000
    assert order["peak_mib"] < 64


def test_a_ring_sends_each_byte_through_the_narrowest_link() -> None:
    cluster = Cluster(peak=1e15, link=450e9, network=50e9)
    assert ring_seconds(1e9, 1, 1, cluster) == (0.0, 0.0)
    inside, across = (ring_seconds(1e9, ranks, 8, cluster) for ranks in (8, 16))
    assert inside[0] - inside[1] == pytest.approx(1e9 * 7 / 8 / (0.8 * 450e9))
    assert across[0] - across[1] == pytest.approx(1e9 * 15 / 16 / (0.8 * 400e9))


def test_messages_hide_behind_computing_until_there_are_too_many() -> None:
    cluster = Cluster(peak=1e15, link=450e9, network=50e9)

    def efficiency(devices: int, tokens: int) -> float:
        work = Work(7e9, 42e9, tokens, 1, 32, 4096)
        return step_time(work, cluster, "fsdp", devices, 0.45).efficiency

    assert efficiency(8, 16384) > efficiency(512, 16384) > 0.98
    assert efficiency(8, 16384) > efficiency(8, 512)
    assert efficiency(4096, 16384) < 0.75
