"""Checkpoints elsewhere come back as they went, whatever happens to server, process and files."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sslm.runs.checkpoints import mirror as mirrors
from sslm.runs.checkpoints.fetch import fetch
from sslm.runs.checkpoints.folder import damage_of, name_of, newest_first
from sslm.runs.checkpoints.mirror import Mirror, check
from sslm.runs.checkpoints.transaction import part_of, remove_checkpoint, seal
from sslm.system import remote_folder
from sslm.system.errors import UserError
from tests.support.files import flip, wait_until
from tests.support.processes import FORKS
from tests.support.servers import S3Server, s3_environment, s3_server

SCHEMES = ["path", "file", "memory", "s3"]


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(remote_folder, "LONGEST_WAIT_SECONDS", 0.2)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as running:
        for name, value in s3_environment(running.port).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {
        "path": str(tmp_path / "away is here"),
        "file": f"file://{tmp_path}/away/run",
        "s3": "s3://bucket/runs/run",
        "memory": f"memory://{tmp_path.name}/run",
    }[request.param]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A mirror that is a folder."""
    return tmp_path / "away"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The run folder of a machine that has nothing."""
    return tmp_path / "fresh" / "run"


def save(run: Path, step: int, num_files: int = 2, num_bytes: int = 1000, seed: int = 0) -> Path:
    """A checkpoint of random bytes, and a row of metrics."""
    final = run / "checkpoints" / name_of(step)
    part = part_of(final)
    (part / "model").mkdir(parents=True)
    (part / "model" / "config.json").write_text("{}")
    for number in range(num_files):
        (part / f"shard-{number:05d}.safetensors").write_bytes(random.Random(step + seed).randbytes(num_bytes + number))
    state = {"format": 1, "step": step, "position": 4 * step, "fingerprint": {}, "seed": seed}
    (part / "state.json").write_text(json.dumps(state))
    seal(part, final, {})
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write(json.dumps({"step": step, "tokens": 4 * step, "train/loss": 1.0}) + "\n")
    return final


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def silence(said: str) -> None:
    raise AssertionError(said)


@contextlib.contextmanager
def opened(url: Any, run: Path, tell: Callable[[str], None] = silence, **settings: Any) -> Iterator[Mirror]:
    mirror = Mirror(str(url), run, tell, **settings)
    yield mirror
    mirror.close()


def upload(url: Any, run: Path, *checkpoints: Path, **settings: Any) -> None:
    """Upload, one after the other, and meet no trouble."""
    with opened(url, run, **settings) as mirror:
        for checkpoint in checkpoints:
            mirror.put(checkpoint)
            assert mirror.wait(60)
            assert mirror.failure is None


# ------------------------------------------------------------------------------------------------ there and back


def test_what_comes_back_is_what_went_there(url: str, run: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "RANGE_BYTES", 3000)
    checkpoint = save(run, 100, num_bytes=10_000)
    beside = {"config.yaml": "seed: 1\n", "wandb_id": "f00d", "anomalies.jsonl": "{}\n", "amendments.jsonl": "{}\nto"}
    for name, text in beside.items():
        (run / name).write_text(text)
    metrics = (run / "metrics.jsonl").read_bytes()
    with open(run / "metrics.jsonl", "a") as rows:
        rows.write('{"step": 101, "tokens": 404}\n{"step": 10')
    upload(url, run, checkpoint)
    assert fetch(url, fresh, silence) == fresh / "checkpoints" / "step-000100"
    assert damage_of(fresh / "checkpoints" / "step-000100") == ""
    assert files_in(fresh) == {
        **{f"checkpoints/{name}": data for name, data in files_in(run / "checkpoints").items()},
        **{name: text.encode() for name, text in beside.items()},
        "amendments.jsonl": b"{}\n",
        "metrics.jsonl": metrics,
    }
    assert fetch(url, fresh, silence) is None  # not newer


def test_nothing_comes_from_where_nothing_is(url: str, fresh: Path) -> None:
    assert fetch(url, fresh, silence) is None
    assert not fresh.exists()


def test_the_newest_of_several_comes(there: Path, run: Path, fresh: Path) -> None:
    upload(there, run, save(run, 999_999), save(run, 1_000_000))
    assert fetch(str(there), fresh, silence) == fresh / "checkpoints" / "step-1000000"


def test_only_a_newer_one_comes_and_a_damaged_one_here_is_none(there: Path, run: Path, fresh: Path) -> None:
    upload(there, run, save(run, 100), save(run, 200))
    save(fresh, 200, seed=1)
    own = files_in(fresh)
    assert fetch(str(there), fresh, silence) is None
    assert files_in(fresh) == own
    (fresh / "checkpoints/step-000200/state.json").write_text("{}")
    said: list[str] = []
    assert fetch(str(there), fresh, said.append) == fresh / "checkpoints" / "step-000200"
    assert damage_of(fresh / "checkpoints" / "step-000200") == ""
    assert ["set aside as step-000200.corrupt" in text for text in said] == [True]


def test_small_files_here_stay_but_for_logs_that_are_longer_there(there: Path, run: Path, fresh: Path) -> None:
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("theirs, and longer")
    (run / "amendments.jsonl").write_text("[1]\n")
    upload(there, run, save(run, 100), save(run, 200))
    save(fresh, 100)
    (fresh / "config.yaml").write_text("ours")
    (fresh / "amendments.jsonl").write_text("[1]\n[2]\n")
    assert fetch(str(there), fresh, silence)
    assert (fresh / "config.yaml").read_text() == "ours"
    assert (fresh / "amendments.jsonl").read_text() == "[1]\n[2]\n"
    assert (fresh / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_what_is_there_already_is_not_sent_again(there: Path, run: Path) -> None:
    checkpoint = save(run, 100)
    upload(there, run, checkpoint)

    def times() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in there.glob("checkpoints/step-000100/*")}

    first = times()
    upload(there, run, checkpoint)
    assert times() == first
    (there / "checkpoints/step-000100/shard-00001.safetensors").write_bytes(b"short")
    upload(there, run, checkpoint)
    changed = {name for name, at in times().items() if at != first[name]}
    assert changed == {"shard-00001.safetensors", "manifest.json"}
    assert files_in(there / "checkpoints") == files_in(run / "checkpoints")


def test_a_step_made_anew_replaces_the_former_one(url: str, run: Path, fresh: Path) -> None:
    upload(url, run, save(run, 100), save(run, 100, seed=1))
    assert fetch(url, fresh, silence)
    assert json.loads((fresh / "checkpoints/step-000100/state.json").read_text())["seed"] == 1


# ------------------------------------------------------------------------------------------------ what is kept


def test_checkpoints_that_are_gone_here_go_there(url: str, run: Path) -> None:
    old = [save(run, step) for step in (100, 200, 300)]
    upload(url, run, *old)
    for checkpoint in old[:2]:
        remove_checkpoint(checkpoint)
    upload(url, run, save(run, 400), keeps=lambda step: step == 200)
    with contextlib.closing(remote_folder.RemoteFolder(url if "://" in url else f"file://{url}")) as files:
        assert {file.split("/")[1] for file in files.files("checkpoints")} == {
            "step-000200",
            "step-000300",
            "step-000400",
            "latest",
        }


# ------------------------------------------------------------------------------------------------ in the background


def test_the_newest_asked_for_wins_and_there_are_never_two_at_once(there: Path, run: Path, fresh: Path) -> None:
    stuck, dropped, newest = (save(run, step) for step in (100, 200, 300))
    (stuck / "manifest.json").unlink()
    os.mkfifo(stuck / "manifest.json")  # who reads it waits for a writer
    said: list[str] = []
    with opened(there, run, said.append) as mirror:
        assert mirror.busy is None
        assert mirror.wait(0)
        mirror.put(stuck)
        wait_until(lambda: mirror.busy == stuck)
        mirror.put(dropped)
        mirror.put(newest)
        assert not mirror.wait(0.01)
        assert mirror.busy == stuck
        while not mirror.wait(0.01):  # it is read more than once
            with (
                contextlib.suppress(OSError),
                open(os.open(stuck / "manifest.json", os.O_WRONLY | os.O_NONBLOCK), "w") as f,
            ):
                f.write("no")
        assert mirror.wait(0)
        assert mirror.failure is None
        assert mirror.busy is None
    assert [text.split(":")[0] for text in said] == [f"step-000100 was not uploaded to {there}"]
    assert sorted(path.name for path in (there / "checkpoints").iterdir()) == ["latest", "step-000300"]
    assert fetch(str(there), fresh, silence)


def test_closing_drops_what_waits(there: Path, run: Path) -> None:
    there.write_text("a file, where a folder should be")
    with opened(there, run, print) as mirror:
        mirror.put(save(run, 100))
    assert mirror.wait(0)
    mirror.put(save(run, 200))
    assert mirror.wait(10)
    assert mirror.failure
    assert "step-000200" in mirror.failure


# ------------------------------------------------------------------------------------------------ faults


def upload_there(url: str, run: Path, step: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    upload(url, run, run / "checkpoints" / name_of(step))


@contextlib.contextmanager
def uploading(url: Any, run: Path, step: int) -> Iterator[Any]:
    """A process that uploads a checkpoint; afterwards it was killed, or has done so."""
    process = FORKS.Process(target=upload_there, args=(str(url), run, step, dict(os.environ)))
    process.start()
    try:
        yield process
        process.join(30)
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("which", ["a later step", "the same step anew"])
def test_a_kill_in_mid_upload_leaves_the_former_one_the_newest(which: str, there: Path, run: Path, fresh: Path) -> None:
    former = save(run, 100)
    upload(there, run, former, *([save(run, 200, 500, seed=1)] if which == "the same step anew" else []))
    kept = files_in(former)
    save(run, 200, num_files=500)
    (there / "checkpoints" / "step-000200").mkdir(exist_ok=True)
    for number in (0, 200):
        shard = there / "checkpoints" / "step-000200" / f"shard-{number:05d}.safetensors"
        shard.unlink(missing_ok=True)
        with uploading(there, run, 200) as process:
            wait_until(shard.exists)
            os.kill(process.pid, signal.SIGKILL)
        assert not (there / "checkpoints" / "step-000200" / "manifest.json").exists(), "killed too late to say anything"
        assert fetch(str(there), fresh, silence) == fresh / "checkpoints" / "step-000100"
        assert files_in(fresh / "checkpoints" / "step-000100") == kept
        shutil.rmtree(fresh)
    upload(there, run, run / "checkpoints" / "step-000200")
    assert fetch(str(there), fresh, silence) == fresh / "checkpoints" / "step-000200"


def test_a_kill_in_mid_upload_to_s3_leaves_the_former_one_the_newest(
    s3: S3Server, tmp_path: Path, run: Path, fresh: Path
) -> None:
    upload("s3://bucket/run", run, save(run, 100))
    save(run, 200, num_files=100)
    with uploading("s3://bucket/run", run, 200) as process:
        wait_until((tmp_path / "s3/bucket/run/checkpoints/step-000200/shard-00010.safetensors").exists)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "s3/bucket/run/checkpoints/step-000200/manifest.json").exists()
    assert fetch("s3://bucket/run", fresh, silence) == fresh / "checkpoints" / "step-000100"


@pytest.mark.slow
def test_kills_at_random_moments_never_cost_an_uploaded_checkpoint(s3: S3Server, run: Path, tmp_path: Path) -> None:
    """Of uploading, overwriting and pruning: what is fetched afterwards is whole and not older than what was there."""
    url, rng, newest = "s3://bucket/run", random.Random(0), 0
    seconds = 30.0  # that an upload takes: the first is left in peace
    for step in range(100, 1300, 100):
        save(run, step, num_files=10)
        for old in newest_first(run / "checkpoints")[2:]:
            remove_checkpoint(old)
        with uploading(url, run, step) as process:
            began = time.monotonic()
            process.join(seconds if step == 100 else rng.uniform(0, 2 * seconds))
            seconds = time.monotonic() - began if step == 100 else seconds
            process.kill()
        fresh = tmp_path / f"fresh-{step}"
        fetched = fetch(url, fresh, silence)
        there = int(fetched.name[5:]) if fetched else 0
        assert fetched is None or damage_of(fetched) == ""
        assert newest <= there <= step
        newest = there
    assert newest > 100


@pytest.mark.parametrize("seconds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_server_may_be_away_for_a_while(seconds: float, s3: S3Server, tmp_path: Path, run: Path, fresh: Path) -> None:
    checkpoint = save(run, 100, num_files=100)
    with opened("s3://bucket/run", run) as mirror:
        mirror.put(checkpoint)
        wait_until((tmp_path / "s3/bucket/run/checkpoints/step-000100/shard-00010.safetensors").exists)
        s3.stop()
        back = threading.Timer(seconds, s3.start)
        back.start()
        assert mirror.wait(100)
        back.join()
        assert mirror.failure is None
    assert fetch("s3://bucket/run", fresh, silence)
    assert files_in(fresh / "checkpoints") == files_in(run / "checkpoints")


def test_a_server_that_stays_away_is_told_of_once_and_the_next_checkpoint_tries_again(
    s3: S3Server, run: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(
        remote_folder.RemoteFolder, "_options", lambda *_: {"config_kwargs": {"retries": {"max_attempts": 0}}}
    )
    said: list[str] = []
    with opened("s3://bucket/run", run, said.append) as mirror:
        s3.stop()
        for step in (100, 200):
            mirror.put(save(run, step))
            assert mirror.wait(60)
            assert mirror.failure
            assert re.match(rf"{name_of(step)} was not uploaded to s3://bucket/run: .*could not be", mirror.failure)
        assert len(said) == 1
        s3.start()
        mirror.put(save(run, 300))
        assert mirror.wait(60)
        assert mirror.failure is None
    assert len(said) == 1
    assert fetch("s3://bucket/run", fresh, silence) == fresh / "checkpoints" / "step-000300"


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "shard-00001.safetensors: not the bytes": lambda c: flip(c / "shard-00001.safetensors"),
    "state.json has 3 bytes": lambda c: (c / "state.json").write_text("{}\n"),
    "shard-00000.safetensors is missing": lambda c: (c / "shard-00000.safetensors").unlink(),
    "no sound manifest": lambda c: (c / "manifest.json").write_text('{"shard-00000.safetensors": {"byt'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_is_damaged_there_is_told_of_and_the_next_older_one_comes(
    damage: str, there: Path, run: Path, fresh: Path
) -> None:
    old, new = save(run, 100), save(run, 200)
    upload(there, run, old, new)
    DAMAGES[damage](there / "checkpoints" / "step-000200")
    said: list[str] = []
    assert fetch(str(there), fresh, said.append) == fresh / "checkpoints" / "step-000100"
    assert damage in said[0]
    assert "step-000200 is damaged" in said[0]
    assert sorted(path.name for path in (fresh / "checkpoints").iterdir()) == ["latest", "step-000100"]
    assert fetch(str(there), fresh, said.append) is None
    assert len(said) == 1  # it is set aside
    upload(there, run, new)  # the step came again, equal to every bit
    assert fetch(str(there), fresh, said.append) == fresh / "checkpoints" / "step-000200"


def entry(data: bytes) -> dict[str, Any]:
    import hashlib

    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


EVIL = b"cos\nsystem\n(S'touch pwned'\ntR."
"""A pickle that would run a command."""


@pytest.mark.parametrize(
    "manifest",
    [
        *(
            {name: entry(EVIL)}
            for name in (
                "../evil",
                "/tmp/sslm-evil",
                "..\\evil",
                "model/../../../evil",
                "a/./evil",
                "a//evil",
                "",
                ".",
                "manifest.json",
                "manifest.json/evil",
                "evil\0",
                "evil\ud800",
                "e" * 300,
                "C:evil",
                "a/" * 100 + "evil",
                "evil\n",
                "~/evil",
            )
        ),
        {"evil": entry(EVIL), "evil/evil": entry(EVIL)},
        {"evil": {"bytes": len(EVIL), "sha256": ""}},
        {"evil": {"bytes": -1, "sha256": entry(EVIL)["sha256"]}},
        {"evil": {"bytes": 10**4000, "sha256": entry(EVIL)["sha256"]}},
        {"evil": {"bytes": True, "sha256": entry(EVIL)["sha256"]}},
        {"evil": {"bytes": "9", "sha256": entry(EVIL)["sha256"]}},
        {"evil": None},
        {".metadata": entry(EVIL)},
        {},
        [],
        None,
        [[[]]],
    ],
)
def test_no_manifest_writes_outside_or_stops_the_older_one(
    manifest: Any, there: Path, run: Path, fresh: Path, tmp_path: Path
) -> None:
    upload(there, run, save(run, 100))
    evil = there / "checkpoints" / "step-000200"
    evil.mkdir()
    for name in ("evil", ".metadata"):
        (evil / name).write_bytes(EVIL)
    (evil / "manifest.json").write_text(json.dumps(manifest))
    (there / "evil").write_bytes(EVIL)
    before = files_in(tmp_path)
    said: list[str] = []
    assert fetch(str(there), fresh, said.append) == fresh / "checkpoints" / "step-000100"
    assert len(said) == 1
    assert len(said[0]) < 400
    after = files_in(tmp_path)
    assert {name for name in after if not name.startswith("fresh/run/") and after[name] != before.get(name)} == {
        "away/checkpoints/step-000200/manifest.json.corrupt"
    }
    assert not any("evil" in name or "pwned" in name for name in after.keys() - before.keys())
    assert not Path("/tmp/sslm-evil").exists()
    assert not Path("pwned").exists()


def test_a_manifest_of_brackets_alone_is_none(there: Path, run: Path, fresh: Path) -> None:
    upload(there, run, save(run, 100))
    evil = there / "checkpoints" / "step-000200"
    evil.mkdir()
    (evil / "manifest.json").write_text("[" * 1_000_000)
    assert fetch(str(there), fresh, print) == fresh / "checkpoints" / "step-000100"


def test_a_full_disk_is_told_as_such_and_leaves_nothing(there: Path, run: Path, tmp_path: Path) -> None:
    upload(there, run, save(run, 100, num_bytes=1 << 20))
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=512k tmpfs {disk} 2>/dev/null"):
        pytest.skip("can't make a small file system")
    try:
        with pytest.raises(OSError, match="No space left"):
            fetch(str(there), disk / "run", silence)
        assert not list((disk / "run/checkpoints").iterdir())
    finally:
        os.system(f"umount {disk}")


# ------------------------------------------------------------------------------------------------ before training


def test_a_place_that_can_be_written_to_is_left_as_it_was(url: str) -> None:
    check(url)
    with contextlib.closing(remote_folder.RemoteFolder(url if "://" in url else f"file://{url}")) as files:
        assert not files.files("")


def test_a_place_that_cannot_be_written_to_is_told_in_a_sentence(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for url, said in {
        "ftpx://host/run": r"ftpx://host/run: not a place to write to; .*s3://",
        "https://me:secret@host/run": r"https://host/run: not a place",
        "s3:/bucket/run": "not a place",
        "s3://": "not a place",
        f"{tmp_path}/file/run": "file.*check this path",
        "s3://nobucket/run": r"s3://nobucket/run: there is no such bucket",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            check(url)
        assert "--checkpoint.upload" in str(caught.value)
        assert "secret" not in str(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"s3://bucket/run/.*refused.*AWS_"):
        check("s3://bucket/run")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gcsfs is needed.*pip install 'sslm\[gs\]'"):
        check("gs://bucket/run")


def test_a_host_that_is_not_there_is_told_of_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        for name, value in s3_environment(deaf.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(mirrors, "CHECK_SECONDS", 0.5)
        with pytest.raises(UserError, match=r"s3://bucket/run: no answer in 0 seconds"):
            check("s3://bucket/run")
    monkeypatch.setattr(mirrors, "CHECK_SECONDS", 30)
    monkeypatch.setattr(mirrors, "CHECK_PATIENCE_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"could not be written for .*connect"):
        check("s3://bucket/run")
