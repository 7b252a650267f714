"""A server of some runs, in a thread of the test's own process."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslm.ui.answers import Shown
from sslm.ui.server import Server
from tests.support.written_runs import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs/b<i>")
    write_run(tmp_path / "runs/a")
    return tmp_path / "runs"


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with Server(Shown([runs]), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
