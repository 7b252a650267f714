"""sslm tokenizer: train, inspect, extend, as typed."""

import json
from pathlib import Path

import pytest

from sslm.cli.tokenizer import main
from sslm.data.corpus.tokenizer import identity, load
from sslm.data.corpus.tokenizer_training import train_bpe
from tests.support.trained import byte_level

Captured = pytest.CaptureFixture[str]


def test_train_is_what_bpe_size_trains(text: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["train", str(text), "--size", "400", "--out", str(tmp_path / "mine")]) == 0
    assert identity(load(tmp_path / "mine")) == identity(train_bpe([(text.read_text(), True)], 400))
    said = capsys.readouterr().out
    assert "mine: bpe, 400 entries, trained on" in said
    assert "python -m sslm.train --data.tokenizer" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_each_input_has_an_equal_share(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "aaaa bbbb"}\n' * 1000)
    (tmp_path / "b.jsonl").write_text('{"body": "zebra"}\n' * 1000)
    given = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    how = ["--size", "300", "--max_chars", "1000", "--text_field", "body", "--out", str(tmp_path / "t")]
    assert main(["train", *given, *how]) == 0
    assert "zebra" in load(tmp_path / "t").get_vocab()


def test_inspect_shows_tokenizers_beside_each_other(text: Path, tmp_path: Path, capsys: Captured) -> None:
    byte_level("the " * 100, 258).save_pretrained(tmp_path / "few")
    byte_level(text.read_text(), 600).save_pretrained(tmp_path / "many")
    (tmp_path / "zh.txt").write_text("今天天气很好" * 50)
    where = [str(tmp_path / name) for name in ("few", "many")]
    assert main(["inspect", *where, "--data", f"en={text}", f"zh={tmp_path / 'zh.txt'}"]) == 0
    title, *rows = (line.split() for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert title[3:] == ["tokens/word", "tokens/char", "bytes/token", "unknown", "in", "bytes"]
    assert [row[:3] for row in rows] == [
        [name, folder, size] for name in ("en", "zh") for folder, size in zip(where, ("258", "600"), strict=True)
    ]
    assert float(rows[1][3]) < float(rows[0][3])
    assert rows[2][3:] == ["–", "3.000", "1.00", "0.00%", "100.00%"]


def test_inspect_has_a_row_for_each_language_of_a_text(tmp_path: Path, capsys: Captured) -> None:
    byte_level("the cat " * 100, 280).save_pretrained(tmp_path / "t")
    texts = ["The cat sat on the mat and slept.", "Die Katze schläft auf dem Sofa.", "The dog was there too."] * 3
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ["inspect", str(tmp_path / "t"), "--by", "language", "--data", f"mine={tmp_path / 'a.jsonl'}"]
    assert main(given) == 0
    _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [row[:2] for row in rows] == [["mine:", "en"], ["mine:", "de"]]
    assert float(rows[0][4]) < float(rows[1][4])  # tokens a word


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "TEXT", "--out", "OLD"], "already exists"),
        (["train", "TEXT", "--out", "new", "--max_chars", "0"], "--max_chars 0: expected a whole number"),
        (["train", "TEXT", "--out", "new", "--kind", "unigram", "--bytes", "level", "--size", "9"], "--size 9: 257 of"),
        (["train", "TEXT", "--out", "new", "--size", "9" * 30], "expected at most 2,097,152 entries"),
        (["train", "TEXT", "--out", "new", "--special_tokens", "the"], "--special_tokens the: is a piece of this text"),
        (["train", "TEXT", "--out", "new", "--special_tokens", "\udcff"], "expected names of printable characters"),
        (["inspect", "OLD", "--data", "BLANK", "--by", "language"], "there is no text in it"),
        (["train", "nothing.txt", "--out", "new"], "nothing.txt: there is no such file"),
        (["inspect", "./nothing", "--data", "TEXT"], "./nothing: there is no such folder"),
        (["inspect", "OLD", "--data", "de="], "--data de=: expected a path, or NAME=PATH"),
        (["extend", "OLD", "--out", "new"], "there are no tokens; give some: --tokens"),
        (["extend", "OLD", "--tokens_file", "OLD", "--out", "new"], "can't be read as UTF-8 text, one token a line"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(
    arguments: list[str], message: str, text: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    byte_level("the " * 100, 258).save_pretrained("old")
    blank = tmp_path.parent / f"{tmp_path.name}-blank.txt"
    blank.write_text(" \n\t" * 9)
    names = {"TEXT": str(text), "OLD": "old", "BLANK": str(blank)}
    assert main([names.get(word, word) for word in arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_extend_takes_tokens_from_a_file_and_says_which_were_known(tmp_path: Path, capsys: Captured) -> None:
    byte_level("the cat " * 100, 300).save_pretrained(tmp_path / "old")
    (tmp_path / "new.txt").write_text("\ufeffkubectl\nthe\n\nสวัสดี\n")
    given = ["--tokens_file", str(tmp_path / "new.txt"), "--out", str(tmp_path / "out")]
    assert main(["extend", str(tmp_path / "old"), *given]) == 0
    assert "1 token it had already, and they stay as they are: the" in capsys.readouterr().out
    assert {"kubectl", "สวัสดี"} <= {*load(tmp_path / "out").get_vocab()}
