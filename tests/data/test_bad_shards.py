"""Shards that are damaged or vanish: the run ends with the shard's name, or reads others in its place, on record and
again so when it goes on."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sslm.cli.prepare import main as prepare
from sslm.data.corpus.shards import BadShard, open_corpus
from sslm.data.stream import verify
from sslm.data.stream.packing import pack
from sslm.data.stream.windows import Region
from sslm.train import main
from tests.support.files import flip
from tests.support.processes import train_forked
from tests.support.runs import TINY, losses_of, rows_of
from tests.support.streams import make_corpus, make_stream


@pytest.fixture
def corpus(tmp_path: Path, text: Path) -> Path:
    """A prepared corpus of several shards."""
    flags = ["--tokenizer", "bpe:512", "--document_separator", "\n-----\n", "--shard_tokens", "20000"]
    assert prepare([str(text), "--out", str(tmp_path / "corpus"), *flags]) == 0
    assert sum(shard.split == "train" for shard in open_corpus(tmp_path / "corpus").shards) > 2
    return tmp_path / "corpus"


def flags_of(corpus: Path, run: Path, *more: str) -> list[str]:
    return [
        *TINY,
        "--data.train",
        str(corpus),
        "--run_dir",
        str(run),
        "--data.cache_dir",
        str(run.parent / "cache"),
        *more,
    ]


@pytest.mark.parametrize("file", ["train-00000.bin", "train-00000.ends"])
@pytest.mark.parametrize("best_fit", [False, True])
def test_a_file_that_is_cut_off_while_it_is_read_is_a_bad_shard(tmp_path: Path, file: str, best_fit: bool) -> None:
    stream = make_stream(make_corpus(tmp_path / "c", [[2000] * 4]), with_documents=True, best_fit=best_fit)
    before = stream.at(np.arange(8)).tokens
    os.truncate(tmp_path / "c" / file, 8)
    with pytest.raises(BadShard, match=f"{file}: 8 bytes, not") as caught:
        stream.at(np.arange(8))
    assert caught.value.file == "train-00000.bin"
    assert before.shape == (8, 9)


@pytest.mark.parametrize(
    ("pattern", "flags"),
    [
        ("train-00001.bin", ["--max_steps", "50"]),
        ("val-00000.bin", []),
        ("val-00000.bin", ["--data.on_bad_shard", "substitute"]),
        ("train-*.ends", ["--data.document_mask", "true"]),
        ("train-*.ends", ["--data.packing", "best_fit"]),
        ("packing/*/*.starts", ["--data.packing", "best_fit"]),
        ("packing/*/*.first", ["--data.packing", "best_fit"]),
    ],
)
def test_a_flipped_bit_under_the_old_time_stamp_ends_the_run_with_the_files_name(
    pattern: str, flags: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if pattern.startswith("packing"):
        assert main(flags_of(corpus, tmp_path / "before", *flags)) == 0
        capsys.readouterr()
    for file in corpus.glob(pattern):
        stat = file.stat()
        flip(file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main(flags_of(corpus, tmp_path / "run", *flags)) == 2
    said = capsys.readouterr().err
    assert Path(pattern).parts[0].partition("*")[0] in said
    assert "SHA-256" in said or "is damaged" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run/checkpoints").exists(), "nothing was trained on it"


def test_a_damaged_list_of_packed_regions_is_made_again(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[9, 40, 3, 8]])
    regions = [Region(corpus.shards[0], 0, corpus.shards[0].num_tokens)]
    sound = pack(corpus, regions, 16, 15, tmp_path)
    windows = [sound.pieces(0, window) for window in range(sound.num_windows[0])]
    file = sound.plan / "plan.json"
    for damaged in ("", "[]x", "[{}]", file.read_text().replace('"windows": ', '"windows": 1'), '[{"windows": 1e308}]'):
        file.write_text(damaged)
        again = pack(corpus, regions, 16, 15, tmp_path)
        assert [again.pieces(0, window) for window in range(again.num_windows[0])] == windows


def test_a_long_verification_goes_on_beside_the_run_and_ends_before_it(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SMALL_BYTES", 0)
    flip(max(corpus.glob("train-*.bin")))
    assert main(flags_of(corpus, tmp_path / "run", "--max_steps", "12")) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_substituted_shard_is_recorded_and_the_run_goes_on_alike(corpus: Path, tmp_path: Path) -> None:
    flip(corpus / "train-00001.bin")
    run = tmp_path / "run"
    flags = flags_of(
        corpus, run, "--data.on_bad_shard", "substitute", "--max_steps", "12", "--checkpoint.keep_last", "null"
    )
    assert main(flags) == 0
    [amendment] = map(json.loads, (run / "amendments.jsonl").read_text().splitlines())
    assert (amendment["kind"], amendment["file"]) == ("bad_shard", "train-00001.bin")
    assert amendment["from_position"] % 4 == 0
    state = json.loads((run / "checkpoints/step-000012/state.json").read_text())
    assert state["amendments"] == [amendment]
    digests = [row.get("batch_digest") for row in rows_of(run)]
    losses = losses_of(run)
    for step in (8, 12):
        shutil.rmtree(run / f"checkpoints/step-{step:06d}")
    assert main(flags) == 0
    assert [row.get("batch_digest") for row in rows_of(run)] == digests
    assert losses_of(run) == losses


def test_shard_that_is_gone_when_a_run_goes_back_behind_its_amendment(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = flags_of(corpus, run, "--data.on_bad_shard", "substitute", "--checkpoint.keep_last", "null")
    assert main([*flags, "--max_steps", "12"]) == 0
    names = [shard.file for shard in open_corpus(corpus).shards if shard.split == "train"]
    later = {"from_position": 44, "source": "", "file": names[0], "reason": "gone", "kind": "bad_shard"}
    (run / "amendments.jsonl").write_text(json.dumps(later) + "\n")
    for step in (8, 12):
        shutil.rmtree(run / f"checkpoints/step-{step:06d}")
    (corpus / names[0]).unlink()
    assert main([*flags, "--max_steps", "12"]) == 0
    positions = [json.loads(line)["from_position"] for line in (run / "amendments.jsonl").read_text().splitlines()]
    assert positions[0] == 44
    assert 16 <= positions[1] < 44


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_shards_are_named_at_once(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    shard = corpus / "train-00002.bin"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-2])
    assert main(flags_of(corpus, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "train-00002.bin" in said
    assert not (tmp_path / "run").exists()


def test_shard_that_vanishes_before_it_is_first_read(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[90], [90], [90]])
    stream = make_stream(corpus)
    first = int(stream.places(np.array([0])).regions[0])
    stream.at(np.array([0]))
    for number in range(3):
        (corpus.folder / f"train-{number:05d}.bin").unlink()
    assert len(stream.at(np.array([0])).tokens) == 1, "what is mapped stays readable"
    other = next(p for p in range(99) if stream.places(np.array([p])).regions[0] != first)
    with pytest.raises(BadShard, match="missing"):
        stream.at(np.array([other]))


@pytest.mark.slow
def test_all_ranks_read_the_same_in_place_of_a_missing_shard(corpus: Path, tmp_path: Path) -> None:
    (corpus / "train-00001.bin").unlink()
    runs = [tmp_path / name for name in ("one", "two", "workers")]
    for run, more in zip(runs, ([], ["--devices", "2"], ["--data.num_workers", "2"]), strict=True):
        done = train_forked(flags_of(corpus, run, "--data.on_bad_shard", "substitute", *more), tmp_path / "log")
        assert done.returncode == 0, done.stdout
    amendments = [(run / "amendments.jsonl").read_text() for run in runs]
    assert amendments[0].count("\n") == 1
    assert amendments[0] == amendments[1] == amendments[2]
    digests = [[row.get("batch_digest") for row in rows_of(run)] for run in runs]
    assert digests[0] == digests[1] == digests[2]
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), abs=1e-6)
