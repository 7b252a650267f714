"""Where the fake GPUs' environment can't be made, the sentence says what is missing and what to type."""

import sys
from pathlib import Path

import pytest

from tests.fakegpu import environment

pytestmark = pytest.mark.slow


def test_without_a_compiler_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environment.Missing, match=r"built with gcc, g\+\+, nm: apt-get install gcc g\+\+ binutils"):
        environment.prepare()


def test_without_a_network_it_says_so_and_names_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(environment.Missing, match=r"reaches no index .* SSLM_FAKEGPU_VENV"):
        environment.pip(Path(sys.prefix), ["sslm-has-no-such-package"])


def test_without_room_it_says_how_much_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "NEEDED_BYTES", 10**18)
    with pytest.raises(environment.Missing, match=r"GB free, .* make room, or set SSLM_FAKEGPU_VENV"):
        environment.install(tmp_path / "environment")


def test_a_build_that_fails_with_all_that_it_takes_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exit\\(3\\)"):
        environment.call([sys.executable, "-c", "exit(3)"])
