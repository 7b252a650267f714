"""Corpora at a URL: brought once, whole and right, whatever the server, the disk and other processes do."""

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from sslm.data.corpus import remote
from sslm.data.corpus.remote import RemoteFiles, is_remote, open_remote_corpus
from sslm.data.corpus.shards import BadShard, Corpus, Shard, open_corpus
from sslm.data.corpus.writer import CorpusWriter
from sslm.system import remote_folder
from sslm.system.cache import claimed
from sslm.system.errors import UserError
from sslm.system.files import is_whole
from tests.support.files import flip, wait_until
from tests.support.servers import HttpServer, S3Server, s3_environment, s3_server

NUM_SHARDS, SHARD_TOKENS = 8, 10_000
SHARD_BYTES = 2 * SHARD_TOKENS
ENDS_BYTES = 2 * 8

FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
"""Python 3.12 and later warn of what these tests are about."""


def write_corpus(folder: Path, seed: int, num_shards: int = NUM_SHARDS, shard_tokens: int = SHARD_TOKENS) -> Path:
    """Random ids in shards of equal size with two documents each."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(f"tokenizer {seed}")
    ids = np.random.default_rng(seed).integers(0, 1000, (num_shards, shard_tokens))
    with CorpusWriter(folder, 1000, shard_tokens) as out:
        for row in ids:
            out.add("train", row, np.array([shard_tokens // 2, shard_tokens]), 4 * shard_tokens)
        out.finish("some", "f00d" * 16, [])
    return folder


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(remote_folder, "LONGEST_WAIT_SECONDS", 0.2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("bucket") / "corpus", seed=1)


@pytest.fixture
def http(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = HttpServer(prepared.parent)
    yield running
    running.released.set()
    running.stop()


@pytest.fixture
def s3(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    shutil.copytree(prepared, tmp_path / "s3" / "bucket" / "corpus")
    with s3_server(tmp_path / "s3") as running:
        for name, value in s3_environment(running.port).items():
            monkeypatch.setenv(name, value)
        yield running


@contextlib.contextmanager
def opened(url: str, cache: Path, limit_bytes: int | None = None) -> Iterator[Corpus]:
    corpus = open_remote_corpus(url, cache, limit_bytes)
    yield corpus
    files_of(corpus).close()


def files_of(corpus: Corpus) -> RemoteFiles:
    assert isinstance(corpus.files, RemoteFiles)
    return corpus.files


def assert_equal(corpus: Corpus, prepared: Path) -> None:
    local = open_corpus(prepared)
    assert corpus.sha256 == local.sha256
    for shard in local.shards:
        assert np.array_equal(corpus.tokens(shard), local.tokens(shard))
        assert np.array_equal(corpus.document_ends(shard), local.document_ends(shard))


def in_cache(cache: Path) -> set[str]:
    """Names of everything beside whole shards, index and tokenizer: locks, parts."""
    return {
        path.name for path in cache.rglob("*") if path.is_file() and path.name.startswith(".") and path.name != ".lock"
    }


def parts(cache: Path) -> list[str]:
    return [name for name in in_cache(cache) if name.endswith(".part")]


def cached(corpus: Corpus) -> set[str]:
    files = files_of(corpus)
    return {path.name for path in files.cache.path(files.corpus, "x").parent.glob("[!.]*")}


# ------------------------------------------------------------------------------------------------ equal to the folder


@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_a_corpus_at_a_url_is_the_corpus_in_the_folder(
    scheme: str, http: HttpServer, prepared: Path, tmp_path: Path
) -> None:
    url = {"http": f"{http.url}/corpus/", "file": prepared.as_uri(), "memory": "memory://bucket/corpus"}[scheme]
    if scheme == "memory":
        import fsspec

        fsspec.filesystem("memory").put(str(prepared), "/bucket/corpus", recursive=True)
    with opened(url, tmp_path) as corpus:
        assert corpus.is_remote
        assert corpus.tokenizer_folder.joinpath("tokenizer.json").read_text() == "tokenizer 1"
        assert_equal(corpus, prepared)
    assert not in_cache(tmp_path)
    if scheme == "http":
        assert sorted(http.files()) == sorted(f.name for f in prepared.iterdir() if f.suffix in (".bin", ".ends"))
        with opened(url, tmp_path) as again:
            assert_equal(again, prepared)
        assert len(http.files()) == 2 * NUM_SHARDS  # nothing came twice


def test_what_is_a_url() -> None:
    assert all(is_remote(f"{scheme}://x/y") for scheme in ("s3", "gs", "http", "https", "hf", "file"))
    assert not any(is_remote(path) for path in ("data/corpus", "/data", "C:/data", "name:config", "org/name"))


def test_a_server_without_ranges_will_do(
    http: HttpServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "RANGE_BYTES", 3000)
    http.faults = ["norange"] * 1000
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        assert_equal(corpus, prepared)
    assert len(http.files()) == 2 * NUM_SHARDS


def test_a_corpus_prepared_again_at_the_same_url_is_not_mixed_with_the_old_one(
    prepared: Path, http: HttpServer, tmp_path: Path
) -> None:
    http.folder = tmp_path
    shutil.copytree(prepared, tmp_path / "corpus")
    with opened(f"{http.url}/corpus", tmp_path / "cache") as old:
        old.tokens(old.shards[0])
        shutil.rmtree(tmp_path / "corpus")
        write_corpus(tmp_path / "corpus", seed=2)
        with opened(f"{http.url}/corpus", tmp_path / "cache") as new:
            assert_equal(new, tmp_path / "corpus")
            assert new.tokenizer_folder.joinpath("tokenizer.json").read_text() == "tokenizer 2"
        with pytest.raises(BadShard, match=r"train-00001\.bin.*replaced"):
            old.tokens(old.shards[1])


# ------------------------------------------------------------------------------------------------ faults of the server


@pytest.mark.parametrize("fault", [503, 500, 429, "cut", "flip", "short"])
def test_faults_that_pass_are_survived(fault: str | int, http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.faults = [fault, fault]
        assert_equal(corpus, prepared)
    assert len(http.files()) == 2 * NUM_SHARDS + 2
    assert not in_cache(tmp_path)


def test_opening_survives_503_too(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    http.faults = [503, 503, "cut", 503]
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        assert corpus.num_tokens == NUM_SHARDS * SHARD_TOKENS


def test_what_arrived_before_a_cut_is_not_asked_for_again(
    http: HttpServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "RANGE_BYTES", SHARD_BYTES // 10)
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.requests.clear()
        shard = corpus.shards[0]
        http.faults = ["", "", "", "cut"]
        assert np.array_equal(corpus.tokens(shard), open_corpus(prepared).tokens(shard))
    assert len(http.files()) == 10 + 1


def test_a_connection_over_which_nothing_comes_is_dropped(
    http: HttpServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "STALLED_SECONDS", 0.2)
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.faults = ["stall"]
        corpus.tokens(corpus.shards[0])
        assert http.files() == ["train-00000.bin"] * 2


@pytest.mark.parametrize("fault", ["endless", "trickle", "gzip"])
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_server_that_means_harm_gets_neither_memory_nor_time(
    scheme: str, fault: str, http: HttpServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "STALLED_SECONDS", 0.5)
    for name, value in s3_environment(http.port).items():  # reading objects is HTTP
        monkeypatch.setenv(name, value)
    with opened(f"{http.url}/corpus" if scheme == "http" else "s3://corpus", tmp_path) as corpus:
        http.faults = [fault]
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        assert_equal(corpus, prepared)
        assert http.files()[:2] == ["train-00000.bin"] * 2, "asked again"
        assert time.monotonic() - began < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_listing_without_end_is_given_up(http: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "LISTING_SECONDS", 0.3)
    http.faults = ["trickle"] * 99
    began = time.monotonic()
    with pytest.raises(UserError, match="could not be listed"):
        remote_folder.RemoteFolder(http.url, patience_seconds=0.5).files("corpus/index.json")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("seconds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_server_may_be_away_for_a_while(seconds: int, http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        corpus.tokens(corpus.shards[0])
        http.stop()
        back = threading.Timer(seconds, http.start)
        back.start()
        assert_equal(corpus, prepared)
        back.join()


def test_patience_ends_with_a_sentence(http: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "PATIENCE_SECONDS", 0.5)
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.faults = [503] * 100
        with pytest.raises(UserError, match=r"train-00000\.bin.*could not be read for.*503"):
            corpus.tokens(corpus.shards[0])
        http.faults.clear()
        corpus.tokens(corpus.shards[0])
    assert not in_cache(tmp_path)


@pytest.mark.parametrize("fault", ["flip", "short"])
def test_a_shard_that_stays_bad_is_named(fault: str, http: HttpServer, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.where, http.faults = "train-00003.bin", [fault] * 100
        with pytest.raises(BadShard, match=rf"{http.url}/corpus/train-00003\.bin") as caught:
            corpus.tokens(corpus.shards[3])
        assert caught.value.file == pickle.loads(pickle.dumps(caught.value)).file == "train-00003.bin"
        assert len(http.files()) == remote.DOWNLOADS
        corpus.tokens(corpus.shards[4])
        assert cached(corpus) == {"train-00004.bin"}
    assert not in_cache(tmp_path)


def test_a_shard_that_is_missing_or_empty_there_is_named_at_once(
    prepared: Path, http: HttpServer, tmp_path: Path
) -> None:
    http.folder = tmp_path
    shutil.copytree(prepared, tmp_path / "corpus")
    (tmp_path / "corpus" / "train-00001.bin").unlink()
    (tmp_path / "corpus" / "train-00002.bin").write_bytes(b"")
    with opened(f"{http.url}/corpus", tmp_path / "cache") as corpus:
        with pytest.raises(BadShard, match=r"train-00001\.bin: missing"):
            corpus.tokens(corpus.shards[1])
        with pytest.raises(BadShard, match=r"train-00002\.bin: 0 bytes, not 20000"):
            corpus.tokens(corpus.shards[2])


# ------------------------------------------------------------------------------------------------ what was asked for


def test_mistakes_are_told_at_once(http: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"elsewhere: no index\.json there.*sslm prepare"):
        open_remote_corpus(f"{http.url}/elsewhere", tmp_path, None)
    for status in (401, 403):
        http.faults = [status]
        with pytest.raises(UserError, match=rf"refused.*{status}") as caught:
            open_remote_corpus(f"http://me:secret@127.0.0.1:{http.port}/corpus", tmp_path, None)
        assert "secret" not in str(caught.value)
    for url, said in {
        "ftpx://host/corpus": r"can't read ftpx://; choose from s3://",
        "http://127.0.0.1:99999/corpus": "not a proper address",
        "http:///corpus": "not a proper address",
        "s3://": "no address",
    }.items():
        with pytest.raises(UserError, match=said):
            open_remote_corpus(url, tmp_path, None)
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gcsfs is needed.*pip install 'sslm\[gs\]'"):
        open_remote_corpus("gs://bucket/corpus", tmp_path, None)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "index",
    ["<html>Sign in</html>", "[]", '{"format": 1}', '{"tokenizer_files": {"../../x": {"bytes": 1, "sha256": ""}}}'],
)
def test_an_index_that_is_none_is_refused(index: str, http: HttpServer, tmp_path: Path) -> None:
    http.folder = tmp_path
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(UserError, match=rf"{http.url}/index\.json.*prepare it again"):
        open_remote_corpus(http.url, tmp_path / "cache", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, name)
            for field in ("file", "ends")
            for name in ("/tmp/sslm-evil", "../../x", "a/b", "..", "a\n", ".x")
        ),
        *((f, v) for f in ("num_tokens", "num_documents", "num_bytes", "offset") for v in (-1, 1.5, 1e308, True, "1")),
        ("num_tokens", 0),
        ("num_tokens", 1 << 60),
        ("num_documents", 1 << 40),
        ("split", "wal"),
        ("split", []),
        ("sha256", "x"),
        ("ends_sha256", None),
        ("file", {}),
        ("more", 1),
    ],
)
def test_no_shard_of_an_index_leads_outside_or_out_of_bounds(
    field: str, value: Any, prepared: Path, http: HttpServer, tmp_path: Path
) -> None:
    index = json.loads((prepared / "index.json").read_text())
    index["shards"][-1][field] = value
    refused_before_anything_is_written(index, http, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "1"),
        ("dtype", "O"),
        ("vocab_size", 1 << 17),
        ("vocab_size", 0),
        ("tokenizer", None),
        ("tokenizer_sha256", "../x"),
        ("source", "x"),
        ("shards", [1]),
        ("shards", None),
        ("tokenizer_files", {"../../x": {"bytes": 1, "sha256": "0" * 64}}),
        ("tokenizer_files", {"x": {"bytes": 1e30, "sha256": "0" * 64}}),
        ("tokenizer_files", {"x": {"bytes": 1, "sha256": ""}}),
    ],
)
def test_no_field_of_an_index_is_believed(
    field: str, value: Any, prepared: Path, http: HttpServer, tmp_path: Path
) -> None:
    refused_before_anything_is_written(
        json.loads((prepared / "index.json").read_text()) | {field: value}, http, tmp_path
    )


def test_no_file_is_listed_twice(prepared: Path, http: HttpServer, tmp_path: Path) -> None:
    index = json.loads((prepared / "index.json").read_text())
    index["shards"].append(index["shards"][0])
    refused_before_anything_is_written(index, http, tmp_path)


def refused_before_anything_is_written(index: Any, http: HttpServer, tmp_path: Path) -> None:
    http.folder = tmp_path / "there"
    http.folder.mkdir()
    (http.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=rf"{http.url}/index\.json: damaged, or no index of a corpus \(.*prepare it again"
    ):
        open_remote_corpus(http.url, tmp_path / "cache", None)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.name != ".lock" and file.is_file()]
    with pytest.raises(UserError, match="prepare it again"):
        open_corpus(http.folder)


# ------------------------------------------------------------------------------------------------ reading ahead


def test_files_are_brought_ahead_in_order(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        files_of(corpus).num_threads = 1
        corpus.read_ahead(corpus.shards[2:5])
        wait_until(lambda: len(cached(corpus)) == 6)
        assert http.files() == [f"train-{n:05d}.{kind}" for n in (2, 3, 4) for kind in ("bin", "ends")]
        assert_equal(corpus, prepared)
        assert len(http.files()) == 2 * NUM_SHARDS


def test_reading_ahead_returns_at_once_and_a_later_call_replaces_what_is_queued(
    http: HttpServer, prepared: Path, tmp_path: Path
) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        files_of(corpus).num_threads = 1
        http.faults = ["stall"]
        corpus.read_ahead(corpus.shards[:4])
        wait_until(lambda: http.files() == ["train-00000.bin"])
        corpus.read_ahead(corpus.shards[6:])
        http.released.set()
        wait_until(lambda: len(cached(corpus)) == 5)
        assert "train-00001.bin" not in cached(corpus)
        assert_equal(corpus, prepared)


def test_a_failure_ahead_is_silent_until_the_file_is_fetched(http: HttpServer, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.faults = [404] * 2
        corpus.read_ahead(corpus.shards[:1])
        wait_until(lambda: not http.faults)
        corpus.tokens(corpus.shards[0])
        http.faults = [404]
        with pytest.raises(BadShard):
            corpus.tokens(corpus.shards[1])


def test_nothing_stays_open_after_close(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    def read() -> int:
        with opened(f"{http.url}/corpus", tmp_path / str(random.random())) as corpus:
            corpus.read_ahead(corpus.shards)
            assert_equal(corpus, prepared)
        assert not [thread for thread in threading.enumerate() if thread.name == "sslm-read-ahead"]
        return len(os.listdir("/proc/self/fd"))

    first = read()
    wait_until(lambda: read() <= first)


# ------------------------------------------------------------------------------------------------ a cache with a limit

ROOM = 3 * (SHARD_BYTES + ENDS_BYTES)


def used(corpus: Corpus) -> int:
    """Bytes in the cache, counted while nobody renames."""
    cache = files_of(corpus).cache
    with FileLock(cache.folder / ".lock"):
        return sum(size for _, size, _ in cache._files(parts=True))


def test_the_least_recently_used_go_first(http: HttpServer, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path, ROOM) as corpus:
        for number in (0, 1, 2, 0, 3):
            corpus.tokens(corpus.shards[number])
        assert cached(corpus) == {"train-00002.bin", "train-00000.bin", "train-00003.bin"}
        assert used(corpus) <= ROOM


def test_files_being_read_ahead_make_no_room(http: HttpServer, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path, ROOM) as corpus:
        corpus.read_ahead(corpus.shards[:2])
        wait_until(lambda: len(cached(corpus)) == 4)
        for shard in corpus.shards[2:]:
            corpus.tokens(shard)
        assert {"train-00000.bin", "train-00001.bin"} <= cached(corpus)
        assert used(corpus) <= ROOM


def test_a_limit_that_is_too_small_says_what_would_do(http: HttpServer, tmp_path: Path) -> None:
    url = f"{http.url}/corpus"
    with pytest.raises(UserError, match=f"cache_gb 1.9999e-05: is too small.*needs {SHARD_BYTES} bytes"):
        open_remote_corpus(url, tmp_path, SHARD_BYTES - 1)
    with opened(url, tmp_path, ROOM) as corpus:
        with pytest.raises(UserError, match=f"needs {4 * (SHARD_BYTES + ENDS_BYTES)} bytes here at once"):
            corpus.read_ahead(corpus.shards[:4])
        corpus.tokens(corpus.shards[4])
        corpus.read_ahead(corpus.shards[:3])
        with pytest.raises(UserError, match="at once"):
            corpus.tokens(corpus.shards[3])


@pytest.mark.parametrize("how", ["close", "another window"])
def test_reading_ahead_does_not_wait_for_room_that_nobody_needs(how: str, http: HttpServer, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path, ROOM) as corpus:
        files = files_of(corpus)
        other = files.cache.path("another-job", "file")
        other.parent.mkdir(parents=True)
        with claimed(other, seconds=0):
            with open(other.with_name(".file.part"), "wb") as part:
                part.truncate(ROOM)
            corpus.read_ahead(corpus.shards[:1])
            wait_until(lambda: {".train-00000.bin.lock", ".train-00000.ends.lock"} <= in_cache(tmp_path))
            if how == "close":
                files.close()
            else:
                corpus.read_ahead([])
            wait_until(lambda: "sslm-read-ahead" not in {thread.name for thread in threading.enumerate()})
        assert not http.files()
        corpus.tokens(corpus.shards[0])
        assert not parts(tmp_path)  # nor the other's, which had ended without it


def test_who_has_a_file_mapped_keeps_it(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    local = open_corpus(prepared)
    with opened(f"{http.url}/corpus", tmp_path, SHARD_BYTES) as corpus:
        mapped = [corpus.tokens(shard) for shard in corpus.shards]
        assert cached(corpus) == {corpus.shards[-1].file}
        assert all(np.array_equal(m, local.tokens(s)) for m, s in zip(mapped, local.shards, strict=True))


def test_a_file_that_vanishes_before_it_is_opened_is_fetched_again(
    http: HttpServer, prepared: Path, tmp_path: Path
) -> None:
    class Hasty(RemoteFiles):
        def fetch(self, file: str, num_bytes: int, sha256: str) -> Path:
            path = super().fetch(file, num_bytes, sha256)
            if len(http.files()) == 1:
                path.unlink()
            return path

    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        files = files_of(corpus)
        files.__class__ = Hasty
        assert np.array_equal(corpus.tokens(corpus.shards[0]), open_corpus(prepared).tokens(corpus.shards[0]))
        assert http.files() == ["train-00000.bin"] * 2


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        corpus.tokens(corpus.shards[0])
        (path,) = tmp_path.rglob("train-00000.bin")
        path.write_bytes(b"short")
        assert_equal(corpus, prepared)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
def test_what_the_cache_has_is_hashed_once_in_each_process(prepared: Path, http: HttpServer, tmp_path: Path) -> None:
    corpus = open_remote_corpus(f"{http.url}/corpus", tmp_path, None)
    shard = corpus.shards[0]
    sound, ends = corpus.tokens(shard).copy(), corpus.document_ends(shard).copy()
    cached = [*corpus.folder.glob("shards/*"), *corpus.folder.glob("tokenizer/*")]
    assert len(cached) > 2
    for file in cached:
        stat = file.stat()
        flip(file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_remote_corpus(f"{http.url}/corpus", tmp_path, None)
    assert (again.tokens(shard) == sound).all()
    assert (again.document_ends(shard) == ends).all()
    for name, num_bytes, sha256 in again.tokenizer_files:
        assert (again.tokenizer_folder / name).stat().st_size == num_bytes
        assert is_whole(again.tokenizer_folder / name, sha256)


def test_a_full_disk_makes_room_or_says_so(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=True)
    try:
        with opened(f"{http.url}/corpus", disk) as corpus:  # no limit, and half of the corpus would fit
            assert_equal(corpus, prepared)
            for file in disk.rglob("train-*"):
                file.unlink()
            with contextlib.suppress(OSError):
                (disk / "filler").write_bytes(bytes(1 << 20))
            with pytest.raises(OSError, match="No space left") as caught:
                corpus.tokens(corpus.shards[0])
            assert str(disk) in caught.value.filename
            assert not in_cache(disk)
            (disk / "filler").unlink()
            corpus.tokens(corpus.shards[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ------------------------------------------------------------------------------------------------ several processes


def read_all(
    url: str, cache: Path, limit_bytes: int | None, prepared: Path, passes: int, ahead: int, seed: int
) -> None:
    """Compare every shard with the folder's, in an order of one's own."""
    shards = list(open_corpus(prepared).shards)
    with opened(url, cache, limit_bytes) as corpus:
        for _ in range(passes):
            if seed:
                random.Random(seed).shuffle(shards)
            for number, shard in enumerate(shards):
                corpus.read_ahead(shards[number : number + ahead])
                expected = np.fromfile(prepared / shard.file, corpus.dtype)
                assert np.array_equal(corpus.tokens(shard), expected)
                assert used(corpus) <= (limit_bytes or 1 << 40)


def read_only_one(files: RemoteFiles, shard: Shard, dtype: str, expected: int) -> None:
    tokens = np.memmap(files.fetch(shard.file, 2 * shard.num_tokens, shard.sha256), dtype)
    assert int(tokens.sum()) == expected


@contextlib.contextmanager
def processes(method: str, *calls: tuple[Any, ...], wait: float = 60) -> Iterator[list[Any]]:
    """Run (function, *arguments) in a process each; all must end well, unless killed meanwhile."""
    context = multiprocessing.get_context(method)
    running = [context.Process(target=function, args=arguments) for function, *arguments in calls]  # type: ignore[attr-defined]
    for process in running:
        process.start()
    try:
        yield running
        for process in running:
            process.join(wait)
        assert all(process.exitcode in (0, -signal.SIGKILL) for process in running), [p.exitcode for p in running]
    finally:
        for process in running:
            process.kill()
            process.join()
            process.close()


def test_four_processes_bring_each_file_once(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    call = (read_all, f"{http.url}/corpus", tmp_path, None, prepared, 1, 3)
    http.bytes_per_second = 1_000_000
    with processes("forkserver", *((*call, seed) for seed in range(4))):
        pass
    assert sorted(http.files()) == sorted(f.name for f in prepared.iterdir() if f.suffix in (".bin", ".ends"))
    assert sum("tokenizer" in path for path in http.requests) == 1
    assert not in_cache(tmp_path)


def test_two_jobs_share_a_small_cache(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    call = (read_all, f"{http.url}/corpus", tmp_path, ROOM, prepared, 3, 2)
    with processes("forkserver", (*call, 1), (*call, 2)):
        pass
    assert not in_cache(tmp_path)


def test_a_killed_process_leaves_nothing_that_stays(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    url = f"{http.url}/corpus"
    with opened(url, tmp_path, ROOM) as corpus:
        http.bytes_per_second = 20_000
        with processes("forkserver", (read_all, url, tmp_path, ROOM, prepared, 1, 3, 0)) as (victim,):
            wait_until(lambda: len(parts(tmp_path)) >= 3)
            victim.kill()
        assert parts(tmp_path)
        http.bytes_per_second = None
        corpus.tokens(corpus.shards[-1])  # not one of those it left
        assert not parts(tmp_path)
        assert_equal(corpus, prepared)
    with opened(url, tmp_path):
        assert not in_cache(tmp_path)


def test_a_process_waits_for_one_that_is_killed_and_goes_on(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        http.bytes_per_second = 20_000
        with processes("forkserver", (read_all, f"{http.url}/corpus", tmp_path, None, prepared, 1, 0, 0)) as (victim,):
            wait_until(lambda: http.files())
            http.bytes_per_second = None
            killing = threading.Timer(0.3, victim.kill)
            killing.start()
            corpus.tokens(corpus.shards[0])
            killing.join()
        assert_equal(corpus, prepared)


@pytest.mark.slow
def test_kills_and_a_server_that_fails_at_random(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    dice = random.Random(1)
    stop = threading.Event()

    def trouble() -> None:
        while not stop.wait(0.01):
            http.faults = [dice.choice([503, "cut", "norange", ""]) for _ in range(2)]

    http.bytes_per_second, http.where = 400_000, "train-"
    troubling = threading.Thread(target=trouble)
    troubling.start()
    call = (read_all, f"{http.url}/corpus", tmp_path, ROOM, prepared)
    try:
        for seed in range(4):
            with processes("forkserver", *((*call, 1000, 2, seed + n) for n in range(3))) as victims:
                for victim in victims:
                    time.sleep(dice.uniform(0, 1))
                    assert victim.is_alive()
                    victim.kill()
    finally:
        stop.set()
        troubling.join()
    http.faults = []
    with opened(f"{http.url}/corpus", tmp_path, ROOM) as corpus:
        assert_equal(corpus, prepared)
        assert used(corpus) <= ROOM
    assert not in_cache(tmp_path)


@FORKS
def test_a_fork_after_fetching_fetches_by_itself(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        files, shards = files_of(corpus), corpus.shards
        http.faults = ["stall"]
        corpus.read_ahead(shards[7:])  # a thread of the parent's is at work, and holds a lock
        wait_until(lambda: http.files())
        corpus.tokens(shards[0])
        sums = [int(open_corpus(prepared).tokens(shard).sum()) for shard in shards]
        with processes("fork", *((read_only_one, files, shards[n], corpus.dtype, sums[n]) for n in (1, 2, 3))):
            pass
        http.released.set()
        assert_equal(corpus, prepared)
    assert not in_cache(tmp_path)


@FORKS
def test_a_loader_worker_fetches_by_itself(http: HttpServer, prepared: Path, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader, Dataset

    class Sums(Dataset[int]):
        def __init__(self, corpus: Corpus) -> None:
            self.corpus = corpus

        def __getitem__(self, number: int) -> int:
            self.corpus.read_ahead(self.corpus.shards[number : number + 2])
            return int(self.corpus.tokens(self.corpus.shards[number]).sum())

    local = open_corpus(prepared)
    with opened(f"{http.url}/corpus", tmp_path) as corpus:
        corpus.tokens(corpus.shards[0])
        loader = DataLoader(Sums(corpus), batch_size=None, sampler=range(NUM_SHARDS), num_workers=2)
        assert list(loader) == [int(local.tokens(shard).sum()) for shard in local.shards]


def read_ahead_and_leave(url: str, cache: Path) -> None:
    corpus = open_remote_corpus(url, cache, None)
    corpus.read_ahead(corpus.shards)
    time.sleep(0.5)


def test_a_process_ends_though_a_server_stalls(http: HttpServer, tmp_path: Path) -> None:
    http.where, http.faults = ".bin", ["stall"] * 4
    began = time.monotonic()
    with processes("forkserver", (read_ahead_and_leave, f"{http.url}/corpus", tmp_path)):
        pass
    assert time.monotonic() - began < 20  # the server stalls for 30


# ------------------------------------------------------------------------------------------------ S3


@FORKS
def test_a_corpus_in_s3_survives_an_outage(s3: S3Server, prepared: Path, tmp_path: Path) -> None:
    with opened("s3://bucket/corpus", tmp_path / "cache") as corpus:
        corpus.read_ahead(corpus.shards[:2])
        tokens = open_corpus(prepared).tokens(corpus.shards[2])
        corpus.tokens(corpus.shards[0])
        with processes("fork", (read_only_one, files_of(corpus), corpus.shards[2], corpus.dtype, int(tokens.sum()))):
            pass
        s3.stop()
        back = threading.Timer(0.5, s3.start)
        back.start()
        assert_equal(corpus, prepared)
        back.join()
    assert not in_cache(tmp_path / "cache")


def test_s3_may_ask_to_slow_down(s3: S3Server, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front = HttpServer(tmp_path, upstream=f"127.0.0.1:{s3.port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", front.url)
    try:
        with opened("s3://bucket/corpus", tmp_path / "cache") as corpus:
            for shard in corpus.shards[:2]:
                front.faults = [503]
                corpus.tokens(shard)
            assert_equal(corpus, prepared)
        assert len(front.files()) == 2 * NUM_SHARDS + 2
    finally:
        front.stop()


def test_mistakes_with_s3_are_told_at_once(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    for url in ("s3://bucket/elsewhere", "s3://nobucket/corpus"):
        with pytest.raises(UserError, match=f"{url}: no index"):
            open_remote_corpus(url, tmp_path, None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"refused.*AWS_"):
        open_remote_corpus("s3://bucket/corpus", tmp_path, None)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials there either
    with pytest.raises(UserError, match=r"refused.*AWS_"):
        open_remote_corpus("s3://bucket/corpus", tmp_path, None)
    assert time.monotonic() - began < 10
