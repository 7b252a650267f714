"""Runs over shards on a server have the batches of a local run, with room for a few shards only."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslm.cli.prepare import main as prepare
from sslm.train import main
from tests.support.processes import Ranks, train_forked
from tests.support.runs import TINY, digests_of, losses_of, rows_of
from tests.support.servers import HttpServer

LONGER = ["--max_steps", "40", "--val_every", "20", "--data.block_shards", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A prepared corpus of ninety shards, of which a run of 40 steps reads three blocks of two."""
    out = tmp_path_factory.mktemp("remote") / "corpus"
    flags = ["--tokenizer", "bpe:512", "--document_separator", "\n-----\n", "--shard_tokens", "1000"]
    assert prepare([str(text), "--out", str(out), *flags]) == 0
    assert len(list(out.glob("train-*.bin"))) > 50
    return out


@pytest.fixture
def http(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = HttpServer(corpus.parent)
    yield server
    server.released.set()
    server.stop()


def flags_of(corpus: str, run: Path, *more: str) -> list[str]:
    return [
        *TINY,
        *LONGER,
        "--data.train",
        corpus,
        "--run_dir",
        str(run),
        "--data.cache_dir",
        str(run.parent / "cache"),
        *more,
    ]


@pytest.fixture(scope="module")
def local(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("local") / "run"
    assert main(flags_of(str(corpus), run)) == 0
    return run


@pytest.mark.slow
def test_a_run_over_http_is_the_local_one_with_room_for_a_few_shards(
    http: HttpServer, local: Path, tmp_path: Path
) -> None:
    room = 12 * (1000 * 2 + 100)
    assert main(flags_of(f"{http.url}/corpus", tmp_path / "run", "--data.cache_gb", str(room / 1e9))) == 0
    assert digests_of(tmp_path / "run") == digests_of(local)
    assert losses_of(tmp_path / "run") == losses_of(local)
    cached = [file for file in (tmp_path / "cache/remote").glob("*/shards/*") if not file.name.startswith(".")]
    assert sum(file.stat().st_size for file in cached) <= room
    assert len({file for file in http.files() if file.startswith("train")}) >= 2 * 6


def test_no_password_is_shown_or_kept_and_another_one_goes_on_with_the_run(
    http: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for password, steps in (("hush-1", "2"), ("hush-2", "4")):
        url = f"http://me:{password}@127.0.0.1:{http.port}/corpus"
        flags = [*flags_of(url, tmp_path / "run"), "--max_steps", steps, "--logger", "wandb"]
        done = train_forked(flags, tmp_path / "log", env={"WANDB_MODE": "offline"})
        assert done.returncode == 0, done.stdout
        assert "hush" not in done.stdout
    assert [row["step"] for row in rows_of(tmp_path / "run") if "train/loss" in row] == [1, 2, 3, 4]
    kept = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in kept)
    assert not [file for file in kept if b"hush" in file.read_bytes()]
    assert "http://127.0.0.1" in (tmp_path / "run/config.yaml").read_text()
    assert len(list((tmp_path / "cache/remote").glob("*/index.json"))) == 1


def test_too_little_room_is_refused_in_a_sentence(
    http: HttpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags_of(f"{http.url}/corpus", tmp_path / "run", "--data.cache_gb", "1e-5")) == 2
    said = capsys.readouterr().err
    assert "--data.cache_gb 1e-05" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_server_that_is_switched_off_in_mid_run_costs_nothing_but_time(
    http: HttpServer, local: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = Ranks(flags_of(f"{http.url}/corpus", run), tmp_path / "log")
    while not (run / "metrics.jsonl").is_file() and process.is_alive():
        time.sleep(0.02)
    http.stop()
    back = threading.Timer(5, http.start)
    back.start()
    codes = process.wait(120)
    back.join()
    assert codes == [0], process.said()
    assert digests_of(run) == digests_of(local)


@pytest.mark.slow
def test_two_processes_over_http_share_the_shards(http: HttpServer, local: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train_forked(flags_of(f"{http.url}/corpus", run, "--devices", "2"), tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert digests_of(run) == digests_of(local)
    shards = [file for file in http.files() if file.endswith(".bin")]
    assert len(shards) == len(set(shards)), "a shard was brought twice"
