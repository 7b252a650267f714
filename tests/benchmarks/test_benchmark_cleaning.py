"""The benchmark of cleaning runs, and what it measures beside the rules does the same."""

import importlib
import json
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imported as its script sees its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cleaning")


def test_the_benchmark_measures_each_rule_and_all(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("\n".join(topics[name] for name in sorted(topics)[:20]))
    assert benchmark.main(["--text", str(text), "--documents", "40", "--rounds", "2", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert list(results["rules"]) == ["gopher", "c4", "fineweb", "gopher, c4, fineweb"]
    assert results["documents"] == 40
    for found in results["rules"].values():
        assert found["differ"] == 0
        assert all(len(seconds) == 2 for seconds in found["seconds"].values())
    assert str(tmp_path) not in out.read_text()
    assert "| gopher, c4, fineweb |" in capsys.readouterr().out


def test_cut_documents_are_whole_lines_of_the_text(benchmark: ModuleType) -> None:
    text = "".join(f"line {number}\n" for number in range(100))
    found = benchmark.cut([text], 50, 10)
    assert text.startswith("".join(found))
    assert [50 <= len(document) < 60 for document in found] == [True] * 10
