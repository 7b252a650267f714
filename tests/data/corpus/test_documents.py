"""From files to batches: formats, tokenizers, preparation, splits, the loader's arithmetic."""

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.corpus.documents import Piece, _split, _whole, open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.tokenizer import END_OF_TEXT, identity, load, train_bpe
from sslm.system.files import write_atomically
from tests.support.processes import run_command


def documents(given: str, **how: str | None) -> list[str]:
    source = open_source(given, **{"text_field": "text", "document_separator": None} | how)  # type: ignore[arg-type]
    return joined(source.pieces())


def joined(pieces: Iterator[Piece]) -> list[str]:
    found, open_text = [], ""
    for text, ends in pieces:
        open_text += text
        if ends:
            found.append(open_text)
            open_text = ""
    assert not open_text
    return found


# ------------------------------------------------------------------------------------------------ documents


def test_every_format_gives_its_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ["first document", "second, with ünïcode", "third\nof two lines"]
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write(lines)
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as zst:
        zst.write(lines.encode())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("<doc>".join(texts))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert documents(str(tmp_path / name)) == texts, name
    assert documents(str(tmp_path / "a.txt")) == ["<doc>".join(texts)]
    assert documents(str(tmp_path / "a.txt"), document_separator="<doc>") == texts
    assert documents(str(tmp_path / "*.jsonl*")) == texts * 3
    assert documents(str(tmp_path / "a.jsonl"), text_field="text") == texts


def test_saved_dataset_gives_its_documents(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"body": ["one", "two"]})
    rows.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    for name in ("plain", "splits"):
        assert documents(str(tmp_path / name), text_field="body") == ["one", "two"]


def test_few_invalid_bytes_are_replaced_and_a_byte_order_mark_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"good text " * 100 + b"\xff" + b"more" * 100)
    [text] = documents(str(tmp_path / "a.txt"))
    assert text.startswith("good")
    assert text.count("\ufffd") == 1


@given(text=st.text(alphabet="ab \n-", max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5))
def test_splitting_does_not_depend_on_how_the_file_was_read(text: str, cuts: list[int]) -> None:
    import re

    separator = re.compile("\n-+\n")
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert joined(_split(iter(chunks), separator)) == separator.split(text)


def test_long_documents_are_cut_where_tokens_are_not(monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    whole = text.read_text()
    tokenizer = train_bpe([(whole, True)], 400)
    monkeypatch.setattr("sslm.data.corpus.documents.PIECE_CHARS", 1000)
    pieces = [piece for piece, _ in _whole(iter([whole]))]
    assert len(pieces) > 50
    assert "".join(pieces) == whole
    assert [i for piece in pieces for i in tokenizer(piece)["input_ids"]] == tokenizer(whole)["input_ids"]


def test_embedded_corpus_is_two_megabytes_of_english_in_documents() -> None:
    source = open_source(None, text_field="text", document_separator=None)
    texts = joined(source.pieces())
    assert source.name == EMBEDDED
    assert len(texts) > 500
    assert 1.5e6 < sum(len(text.encode()) for text in texts) < 5e6


# ------------------------------------------------------------------------------------------------ tokenizer


def test_bpe_is_identical_each_time(text: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sslm.data.corpus.tokenizer import *; "
        "print(identity(train_bpe([(Path(sys.argv[1]).read_text(), True)], 600)))"
    )
    hashes = {run_command(["-c", code, str(text)], env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert documents(str(tmp_path / "a.jsonl")) == ["a?b"]


def test_bpe_gives_every_text_back(text: Path) -> None:
    tokenizer = train_bpe([(text.read_text(), True)], 400)
    for odd in ("naïve café", "日本語", "\t  tabs\r\n", "🙂🙃", "<|endoftext|> in text"):
        assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd
    assert tokenizer.eos_token == END_OF_TEXT
    assert len(tokenizer) == 400


def test_tokenizer_comes_from_a_folder_or_its_file(text: Path, tmp_path: Path) -> None:
    tokenizer = train_bpe([(text.read_text(), True)], 300)
    tokenizer.save_pretrained(tmp_path / "t")
    for where in (tmp_path / "t", tmp_path / "t/tokenizer.json"):
        assert identity(load(where)) == identity(tokenizer)


def test_identity_knows_tokenizers_apart(text: Path) -> None:
    pieces = [(text.read_text(), True)]
    assert identity(train_bpe(pieces, 300)) != identity(train_bpe(pieces, 301))


def test_file_that_could_not_be_replaced_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "in_the_way", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["in_the_way"]
