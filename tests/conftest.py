"""Shared by all tests: a text, a cache of prepared corpora, a tiny run, and a guard that nothing is left behind."""

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import HealthCheck, settings

from sslm.train import main
from tests.support.processes import Ranks
from tests.support.runs import TINY, TrainTiny

settings.register_profile("sslm", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("sslm")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 kB of English in 120 documents, separated by a line of dashes."""
    file = tmp_path_factory.mktemp("text") / "topics.txt"
    whole = "\n".join(topics[name] for name in sorted(topics))[:200_000]
    size = len(whole) // 120 + 1
    file.write_text("\n-----\n".join(whole[start : start + size] for start in range(0, len(whole), size)))
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(text: Path, cache: Path) -> list[str]:
    """Command line of a tiny run, but for --run_dir."""
    return [*TINY, "--data.train", str(text), "--data.document_separator", "\n-----\n", "--data.cache_dir", str(cache)]


@pytest.fixture
def train_tiny(tiny: list[str]) -> TrainTiny:
    """Train in this process: train_tiny(run_dir, *more flags) -> exit code."""

    def run(run_dir: Path, *flags: str) -> int:
        return main([*tiny, "--run_dir", str(run_dir), *flags])

    return run


@pytest.fixture
def one_compiler() -> Iterator[None]:
    """torch.compile in this process: no pool of compilers that outlives the test. (pytest's monkeypatch, undone, leaves torch's
    config without the entry.)"""
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=1):
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process or a thread running."""
    before = set(threading.enumerate())
    yield
    assert not Ranks.end_all()
    assert not multiprocessing.active_children()
    left = {t for t in threading.enumerate() if t.is_alive() and not t.daemon} - before
    assert not left, f"threads left running: {left}"
