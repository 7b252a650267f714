"""The benchmark runs, and its results have the shape that the tables need."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tests.support.processes import run_command

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = {"litdata": "litdata", "mosaic": "streaming", "hf_map": "torchdata", "hf_streaming": "torchdata"}


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
    """measured(names, *flags) -> what the benchmark prints of these systems, and its results."""
    text, out = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("\n".join(topics[name] for name in sorted(topics)))
    small = f"--text {text} --tokens 400000 --vocab_size 257 --rounds 1 --seconds 0.1 --shapes 1 --out {out}".split()

    def run(names: list[str], *flags: str) -> tuple[str, dict[str, Any]]:
        command = [str(BENCHMARKS / "data.py"), *small, "--only", ",".join(names), "--work", str(tmp_path / "work")]
        finished = run_command([*command, *flags], timeout=900)
        assert finished.returncode == 0, finished.stderr
        results = json.loads(out.read_text())
        assert results["text"]["tokens"] >= 400_000
        assert list(results["systems"]) == names
        return finished.stdout, results["systems"]

    return run


@pytest.mark.slow
def test_the_benchmark_measures_sslm_and_the_installed_peers_in_every_column(
    measured: Callable[..., tuple[str, dict[str, Any]]],
) -> None:
    said, systems = measured(["sslm", "limit", *(name for name, package in PEERS.items() if find_spec(package))])
    for name, system in systems.items():
        if name not in PEERS:  # of the others, some can't be resumed by other processes
            assert system["errors"] == []
        if name != "hf_streaming":
            assert system["prepare"]["seconds"][0] > 0
        assert list(system["read"]) == ["16x1024"]  # the other differs in its numbers only
        assert_read(system, "0" if name == "limit" else "012")
        assert 0 < system["start"]["without_imports"][0] < system["start"]["0"][0]
        assert system["memory"]["0"][0] > 50e6
    for change in systems["sslm"]["changes"].values():
        assert (change["lost"], change["doubled"], change["exact"]) == (0, 0, True)
        assert change["rows"] > 300
    assert "| **sslm** |" in said
    _, systems = measured(["sslm_mixture", "megatron"], "--measure", "read")
    for system in systems.values():
        assert system["errors"] == []
        assert_read(system, "012")


def assert_read(system: dict[str, Any], workers: str) -> None:
    assert all(system["read"]["16x1024"][number][0] > 0 for number in workers)


def test_a_row_lost_and_a_row_seen_twice_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data

    whole = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert counted(data.compare(whole, whole, whole)) == (0, 0, True, True)
    seen = [["a", "b"], ["a", "d"], ["e", "f"]]
    assert counted(data.compare(seen, whole, whole)) == (1, 1, False, True)
    shorter = whole[:2]  # after the change, an epoch leaves e and f out: they are not lost
    assert counted(data.compare(shorter, whole, shorter)) == (0, 0, False, True)
    others = [["g", "h"], ["i", "j"], ["k", "l"]]
    assert not data.compare(whole, whole, others)["same_rows"]


def counted(found: dict[str, Any]) -> tuple[int, int, bool, bool]:
    return found["lost"], found["doubled"], found["exact"], found["same_rows"]
