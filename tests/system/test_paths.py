"""Paths that begin with a home folder, in every place where a path can be typed."""

import os
from pathlib import Path

import pytest

from sslm import DataConfig
from sslm.cli import ckpt, export, prepare
from sslm.cli.parse import parse
from sslm.cli.verify_resume import working_folder
from sslm.config import FLAGS, PATHS
from sslm.config.written import to_tree, to_yaml
from sslm.runs.changes import differences
from sslm.system.errors import UserError
from sslm.system.paths import as_typed, followed

PATH_FLAGS = [name for name in PATHS if name in FLAGS]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, in which this process works as well."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_these_settings_are_paths() -> None:
    where = {"run_dir", "resume", "model.pretrained", "model.embedding_init", "deepspeed.config", "checkpoint.upload"}
    where |= {f"data.{name}" for name in ("train", "val", "tokenizer", "cache_dir", "sources.path")}
    assert set(PATHS) == where | {"distill.teacher", "distill.cache"}


@pytest.mark.parametrize("name", PATH_FLAGS)
def test_every_path_is_followed_from_flags_files_and_python_and_written_as_typed(name: str, home: Path) -> None:
    section, _, key = name.rpartition(".")
    (home / "a.yaml").write_text(f"{section}:\n  {key}: ~/x/a" if section else f"{key}: ~/x/a")
    flag, file = parse([f"--{name}=~/x/a"]), parse(["--config=~/a.yaml"])
    assert getattr(getattr(flag, section) if section else flag, key) == f"{home}/x/a"
    assert flag == file
    (home / "b.yaml").write_text(to_yaml(flag))
    assert "~/x/a" in (home / "b.yaml").read_text()
    assert parse(["--config", "b.yaml"]) == flag
    for untouched in ("s3://bucket/~x", "org/name", "./~a"):
        given = parse([f"--{name}", untouched])
        assert getattr(getattr(given, section) if section else given, key) == untouched


def test_sources_of_a_mixture_are_followed(home: Path) -> None:
    sources = parse(["--data.sources=[{path: ~/a}, {path: embedded}]"]).data.sources
    assert sources is not None
    assert [source.path for source in sources] == [f"{home}/a", "embedded"]
    assert DataConfig(train="~/a").train == f"{home}/a"


def test_a_path_is_the_same_however_it_is_written_and_wherever_home_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = to_tree(parse(["--data.train=~/a"]))
    assert not differences(kept, to_tree(parse([f"--data.train={home}/a"])))
    monkeypatch.setenv("HOME", "/elsewhere")
    assert not differences(kept, to_tree(parse(["--data.train=~/a"])))
    assert differences(kept, to_tree(parse(["--data.train=~/b"]))) == {"data.train": ("~/a", "~/b")}


@pytest.mark.parametrize("name", PATH_FLAGS)
def test_a_home_that_nobody_has_is_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name} ~nobody-here/x: there is no user nobody-here here"):
        parse([f"--{name}=~nobody-here/x"])


def test_other_verbs_follow_paths_and_say_them_as_typed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a.txt").write_text("Text enough for a corpus. " * 200)
    assert prepare.main(["~/a.txt", "--out=~/corpus", "--tokenizer", "bpe:300"]) == 0
    assert (home / "corpus/index.json").is_file()
    for verb, words in (
        (prepare, ["~/a.txt", "--out=~/corpus"]),
        (export, ["~/run", "--out=~/x"]),
        (ckpt, ["ls", "~/run"]),
        (ckpt, ["verify", "~/run"]),
        (ckpt, ["diff", "~/run", "~/run"]),
        (ckpt, ["reshard", "~/run", "--shards=2", "--out=~/x"]),
        (ckpt, ["rm", "~/run", "1"]),
    ):
        assert verb.main(words) == 2
        assert "error: ~/run:" in (said := capsys.readouterr().err) or "--out ~/corpus: already exists" in said
    assert working_folder("~/kept") == home / "kept"
    assert sorted(path.name for path in home.iterdir()) == ["a.txt", "corpus", "kept"]
    with pytest.raises(SystemExit):
        ckpt.main(["ls", "~nobody-here/run"])
    assert "there is no user nobody-here here" in capsys.readouterr().err


def test_sentences_have_paths_as_typed(home: Path) -> None:
    there = followed("~/runs/a")
    assert as_typed(f"{there}: no; {there}/x, {there}-b, {there}.old") == (
        f"~/runs/a: no; ~/runs/a/x, {there}-b, {there}.old"
    )
    assert os.path.isabs(there)
