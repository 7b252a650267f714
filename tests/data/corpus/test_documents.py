"""From files to batches: formats, tokenizers, preparation, splits, the loader's arithmetic."""

import gzip
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.corpus.documents import Piece, _split, _whole, open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.tokenizer import END_OF_TEXT, TokenRules, identity, load, special_names, text_encoder
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.system.errors import UserError
from sslm.system.files import write_atomically
from tests.support.processes import run_command
from tests.support.vocabularies import save_tokenizer


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


def test_what_is_not_utf_8_becomes_the_same_mark_in_every_format(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    bad = b"good text " * 100 + b"\xe9 and more"
    text = "good text " * 100 + "\ufffd and more"
    (tmp_path / "a.txt").write_bytes(bad)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + bad + b'"}\n')
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([bad]).buffers())  # Arrow does not look
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.txt", "a.jsonl", "a.parquet", "saved"):
        source = open_source(str(tmp_path / name), "text", None)
        assert joined(source.pieces()) == [text], name
        assert list(source.remarks.values()) == [f"{tmp_path / name}: 1 place not UTF-8, read as U+FFFD"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_text_in_another_encoding_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    bad = "façade déjà vu ".encode("latin-1") * 99
    (tmp_path / "a.txt").write_bytes(bad)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + bad + b'"}\n')
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([bad]).buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"not UTF-8 text \(297 places .* iconv"):
        documents(str(tmp_path / name))


def test_folder_holds_what_its_files_and_links_say(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "below").mkdir()
    elsewhere.mkdir()
    line = '{{"text": "{}"}}\n'
    (folder / "a.TXT").write_text("a.TXT")
    with gzip.open(folder / "b.JSONL.GZ", "wt") as stream:
        stream.write(line.format("b.JSONL.GZ"))
    with gzip.open(folder / "below" / "c.json.gz", "wt") as stream:
        stream.write(line.format("c.json.gz"))
    (elsewhere / "d.ndjson").write_text(line.format("d.ndjson"))
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)
    (folder / "metadata.json").write_text("[]")
    for name in ("empty.parquet", "empty.jsonl", "notes.md", ".hidden.txt", ".ipynb_checkpoints/a-checkpoint.txt"):
        (folder / name).write_text("hidden" if "." in name[0] else "more" * ("md" in name))
    source = open_source(str(folder), "text", None)
    assert joined(source.pieces()) == ["a.TXT", "b.JSONL.GZ", "c.json.gz", "d.ndjson"]
    assert source.remarks["files"].endswith("6 files left out (2 empty, 2 hidden, 2 of another kind)")
    assert documents(f"{folder}/*.[TJj]*") == ["a.TXT", "b.JSONL.GZ"]


@pytest.mark.parametrize("separator", [None, "\n\n\n"])
def test_one_document_that_looks_like_many_is_told_of(tmp_path: Path, separator: str | None) -> None:
    (tmp_path / "a.txt").write_bytes(b"A paragraph.\r\n\r\n" * 150)
    source = open_source(str(tmp_path / "a.txt"), "text", separator)
    assert len(joined(source.pieces())) == 1
    [remark] = source.remarks.values()
    assert ("matches nowhere" in remark) == ("\\r?\\n" in remark) == (separator is not None)
    assert ("150 paragraphs" in remark) == ("--data.document_separator '\\n\\s*\\n'" in remark) == (separator is None)


@given(
    text=st.text(alphabet="ab \n", max_size=300), cuts=st.lists(st.integers(0, 300), max_size=4), one_line=st.booleans()
)
def test_pieces_do_not_depend_on_how_much_is_read_at_once(text: str, cuts: list[int], one_line: bool) -> None:
    text = text.replace("\n", " ") if one_line else text
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslm.data.corpus.documents.PIECE_CHARS", 20)
        pieces = list(_whole(iter([text])))
        assert list(_whole(text[a:b] for a, b in itertools.pairwise(bounds))) == pieces
    assert "".join(piece for piece, _ in pieces) == text


def test_time_for_a_document_grows_with_its_length_alone(tmp_path: Path) -> None:
    def seconds(megabytes: int) -> float:
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word and " * (megabytes * 111_111)}))
        source = open_source(str(tmp_path / "a.jsonl"), "text", None, lambda file: "")
        start = time.perf_counter()
        assert sum(len(piece) for piece, _ in source.pieces()) == megabytes * 999_999
        return time.perf_counter() - start

    few, many = min(seconds(4) for _ in range(3)), seconds(64)  # 16 times as much; 250 times the time if quadratic
    assert many < 60 * few


@pytest.mark.parametrize("run", [" ", "\n", "=", "\u200b", "!\x1c"], ids=repr)
def test_bpe_takes_no_long_run_for_a_word(run: str) -> None:
    start = time.perf_counter()
    tokenizer = train_bpe([("some words and more words " * 50 + run * 200_000, True)], 300)
    assert time.perf_counter() - start < 10  # without the cut it is a minute and more
    assert max(map(len, tokenizer.get_vocab())) <= 400


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
        "import sys; from pathlib import Path; from sslm.data.corpus.tokenizer import identity; "
        "from sslm.data.corpus.tokenizer_training import train_bpe; "
        "print(identity(train_bpe([(Path(sys.argv[1]).read_text(), True)], 600)))"
    )
    hashes = {run_command(["-c", code, str(text)], env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b, \\ud83d\\ude42%s"}' % ("." * 100))
    assert documents(str(tmp_path / "a.jsonl")) == ["a\ufffdb, 🙂" + "." * 100]
    (tmp_path / "b.jsonl").write_text('{"text": "a\\ud800b"}')
    with pytest.raises(UserError, match=r"not UTF-8 text \(1 place .* halves of characters"):
        documents(str(tmp_path / "b.jsonl"))


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


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_no_name_of_a_special_token_in_a_text_becomes_one(tmp_path: Path, kind: str) -> None:
    tokenizer = load(save_tokenizer(kind, tmp_path))
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # which stands for unknown characters, too
    text = " ".join(["a", *special_names(tokenizer), "a"])
    [plain] = text_encoder(tokenizer, TokenRules())([text])
    [parsed] = text_encoder(tokenizer, TokenRules("parse"))([text])
    assert special.isdisjoint(plain)
    assert special.issubset(parsed)


def test_identity_knows_tokenizers_apart(text: Path) -> None:
    pieces = [(text.read_text(), True)]
    assert identity(train_bpe(pieces, 300)) != identity(train_bpe(pieces, 301))


def test_file_that_could_not_be_replaced_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "in_the_way", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["in_the_way"]
