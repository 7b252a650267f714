"""Shared by all tests: a text, a cache of prepared corpora, a tiny run, and a guard that nothing is left behind."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from sslm.train import main
from tests.support.processes import Ranks
from tests.support.runs import TINY, TrainTiny

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # without AMX: fp32 is every CPU's default precision
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers' threads that load weights outlive the call by a moment
settings.register_profile("sslm", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("sslm")


TIMED = {
    "tests/parallel/test_launchers.py",
    "tests/runs/test_resume.py",
    "tests/test_slurm.py",
    "tests/training/test_watchdog.py",
}
"""Files whose tests measure time or start processes cold; no two of them run beside each other."""


LONG = [
    "tests/fakegpu/test_runs.py",
    "tests/test_images.py",
    "tests/test_slurm.py",
    "tests/benchmarks/test_benchmarks.py",
    "tests/cli/test_verify_resume.py",
    "tests/test_chaos.py",
    "tests/test_public.py",
]
"""Files that take longest begin first, so that the workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(LONG)))


class ByFile(LoadScopeScheduling):
    """pytest-xdist's scheduler: a file stays on one worker, and so do all that measure time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "timed" if file in TIMED else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # in our order, not that of the number of tests
    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def text(shared: Path) -> Path:
    """About 200 kB of English in 120 documents, separated by a line of dashes."""
    file = shared / "topics.txt"
    whole = "\n".join(topics[name] for name in sorted(topics))[:200_000]
    size = len(whole) // 120 + 1
    with FileLock(shared / "topics.lock"):
        if not file.is_file():
            file.write_text("\n-----\n".join(whole[start : start + size] for start in range(0, len(whole), size)))
    return file


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """Prepared corpora: whichever worker comes first prepares them."""
    return shared / "cache"


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
    """torch.compile in this process, without a pool of compilers that outlives the test; nothing may run uncompiled.

    pytest's monkeypatch, undone, would leave torch's config without the entry.
    """
    import torch._dynamo
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit  # compiling a model's blocks raises it
    with (
        inductor.patch(compile_threads=1),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit),
    ):
        yield


@pytest.fixture
def no_kernels(one_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is traced and guarded as always, but no kernels are made; tests/parallel/test_compilation.py."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    counters.clear()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process or a thread running, or a variable that the commands of a later one would inherit."""
    before, environment = set(threading.enumerate()), dict(os.environ)
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    assert not Ranks.end_all()
    assert not multiprocessing.active_children()
    left = {t for t in threading.enumerate() if t.is_alive() and not t.daemon} - before
    assert not left, f"threads left running: {left}"
