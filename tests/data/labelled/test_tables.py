"""Files of labelled rows with their quirks: what is read of each, and what is said of what can't be read."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Labelled
from sslm.data.labelled.answers import Answers
from sslm.data.labelled.classes import Classes
from sslm.data.labelled.numbers import Numbers
from sslm.data.labelled.prepare import open_labelled, open_rows
from sslm.data.labelled.tables import open_table
from sslm.data.labelled.tags import Tags
from sslm.data.labelled.task import Example, Task
from sslm.data.labelled.texts import Texts
from sslm.system.errors import UserError
from sslm.system.files import sha256_of
from tests.support.vocabularies import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer("bert", tmp_path_factory.mktemp("bert")))


def examples_in(file: Path, task: Task, **data: Any) -> list[Example]:
    config = DataConfig(**data)
    table = open_table(str(file), config, sha256_of)
    columns = table.choose(task.columns(config))
    return [task.example(n, row, config, False) for n, row in enumerate(table.rows(columns))]


def pairs_in(file: Path, task: Task | None = None, **data: Any) -> list[tuple[Any, Any]]:
    """(text, labels or target) of each row."""
    found = examples_in(file, task or Classes(8), **data)
    return [
        (e.text, e.labels[0] if len(e.labels) == 1 and isinstance(e.text, str) else e.labels or e.target) for e in found
    ]


def in_parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)

    return write


ONE = [("a", "x"), ("b, c", "y")]
READ: dict[str, tuple[str, str | bytes, list[tuple[Any, Any]]]] = {
    "plain": ("f.csv", 'text,label\na,x\n"b, c",y\n', ONE),
    "byte order mark": ("f.csv", b'\xef\xbb\xbftext,label\na,x\n"b, c",y\n', ONE),
    "carriage returns": ("f.csv", 'text,label\r\na,x\r\n"b, c",y\r\n', ONE),
    "no end of the last line": ("f.csv", 'text,label\na,x\n"b, c",y', ONE),
    "blank lines and spaces around labels": ("f.csv", 'label , text\n\n x ,a\ny\u00a0,"b, c"\n\n', ONE),
    "semicolons": ("f.csv", "text;label\na;x\nb, c;y\n", ONE),
    "tabs in a .csv": ("f.csv", "text\tlabel\na\tx\nb, c\ty\n", ONE),
    "compressed": ("f.csv.gz", gzip.compress(b'text,label\na,x\n"b, c",y\n'), ONE),
    "ends of lines and quotes inside quotes": ("f.csv", 'text,label\n"a\n""b""",x\n', [('a\n"b"', "x")]),
    "quotes that are text": (
        "f.tsv",
        'text\tlabel\n"a" said b\tx\nhe said "c\ty\n',
        [('"a" said b', "x"), ('he said "c', "y")],
    ),
    "a quote that opens and never closes": ("f.tsv", 'text\tlabel\n"a\tx\nb\ty\n', [('"a', "x"), ("b", "y")]),
    "quotes of two lines that are text": ("f.tsv", 'text\tlabel\n"a\tx\nb"\ty\n', [('"a', "x"), ('b"', "y")]),
    "spaces after commas": ("f.csv", 'text, label\na, x\n"b, c", y\n', ONE),
    "quotes after spaces": ("f.csv", '"label", "text"\nx, a\ny, "b, c"\n', ONE),
    "tabs inside quotes": ("f.tsv", 'text\tlabel\n"a\tb"\tx\nc\ty\n', [("a\tb", "x"), ("c", "y")]),
    "marks that are ends of lines elsewhere": (
        "f.tsv",
        "text\tlabel\na\u2028b\x85c\x0bd\tx\n",
        [("a\u2028b\x85c\x0bd", "x")],
    ),
    "an empty text": ("f.tsv", "text\tlabel\n\tx\n", [("", "x")]),
    "a long text": ("f.tsv", f"text\tlabel\n{'w ' * 200_000}\tx\n", [("w " * 200_000, "x")]),
    "a field that is there twice, not asked for": ("f.csv", "text,n,n,label\na,1,2,x\n", [("a", "x")]),
    "lines of JSON": ("f.jsonl", '{"text": "a", "label": "x"}\n\n{"label": "y", "text": "b, c", "more": [1]}\n', ONE),
    "a list in JSON": ("f.json", '[{"text": "a", "label": "x"},\n {"text": "b, c", "label": "y"}]', ONE),
    "lines in a .json": ("f.json", '{"text": "a", "label": "x"}\n{"text": "b, c", "label": "y"}\n', ONE),
    "half of a surrogate pair": ("f.jsonl", '{"text": "a\\ud800", "label": "x"}\n', [("a\ufffd", "x")]),
    "numbers and truth as labels": (
        "f.jsonl",
        "".join(f'{{"text": "a", "label": {v}}}\n' for v in ("1", "1.0", '"1"', '"1.0"', "true", '"True"', '" 1"')),
        [("a", "1")] * 4 + [("a", "true")] * 2 + [("a", "1")],
    ),
    "a number as a text": (
        "f.jsonl",
        '{"text": 7, "label": "x"}\n{"text": null, "label": 0}\n',
        [("7", "x"), ("", "0")],
    ),
}


@pytest.mark.parametrize("quirk", READ)
def test_rows_are_read_whatever_the_files_quirks(tmp_path: Path, quirk: str) -> None:
    name, content, expected = READ[quirk]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert pairs_in(tmp_path / name) == expected


def test_fields_of_files_that_name_none_go_by_number(tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_text("1\ta\tx\n0\tb, c\ty\n")
    assert pairs_in(tmp_path / "f.tsv", text_field="1", label_field="2") == ONE
    (tmp_path / "years.csv").write_text("1999,2000\na,x\n")
    assert pairs_in(tmp_path / "years.csv", text_field="1999", label_field="2000") == [("a", "x")]
    with pytest.raises(UserError, match="no field '3'; it has 0, 1, 2"):
        pairs_in(tmp_path / "f.tsv", text_field="1", label_field="3")


def test_parquet_and_datasets_are_read_with_the_names_of_their_classes(tmp_path: Path) -> None:
    import datasets

    in_parquet([{"text": "a", "label": "x"}, {"text": "b, c", "label": "y"}])(tmp_path / "f.parquet")
    assert pairs_in(tmp_path / "f.parquet") == ONE
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["y", "x"]))
    rows = datasets.Dataset.from_dict({"text": ["a", "b, c"], "label": [1, 0]}, features=features)
    held_out = datasets.Dataset.from_dict({"text": ["d"], "label": [0]}, features=features)
    datasets.DatasetDict(train=rows, validation=held_out).save_to_disk(tmp_path / "saved")
    assert pairs_in(tmp_path / "saved") == ONE
    table = open_table(str(tmp_path / "saved"), DataConfig(), sha256_of, is_held_out=True)
    assert [row.values for row in table.rows({"t": "text", "l": "label"})] == [{"t": "d", "l": "y"}]
    assert table.class_names == {"label": ["y", "x"]}


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for number, text in enumerate("ab"):
        (tmp_path / f"{number}.csv").write_text(f"text,label\n{text},x\n")
    for given in (tmp_path, tmp_path / "*.csv"):
        assert pairs_in(given) == [("a", "x"), ("b", "x")]


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\n# # O\n\nBrussels NNP B-LOC\n\n\n"
WORDS = [(["EU", "#"], ("B-ORG", "O")), (["Brussels"], ("B-LOC",))]
COLUMNS: dict[str, tuple[str, str, dict[str, str]]] = {
    "spaces": ("f.conll", CONLL, {}),
    "carriage returns": ("f.conll", CONLL.replace("\n", "\r\n"), {}),
    "tabs": ("f.txt", CONLL.replace(" ", "\t"), {"label_field": "2"}),
    "a header": ("f.bio", "word pos ner\n" + CONLL.partition("\n\n")[2], {"label_field": "ner", "text_field": "word"}),
    "remarks": ("f.iob2", CONLL.replace("EU", "# sent_id = 1\nEU", 1), {"label_field": "-1"}),
    "CoNLL-U": (
        "f.conllu",
        "# text = EU #\n1-2\tEUs\t_\t_\n1\tEU\t_\tB-ORG\n2\t#\t_\tO\n\n1\tBrussels\t_\tB-LOC\n",
        {"label_field": "UPOS"},
    ),
    "CoNLL-U Plus": (
        "f.conll",
        "# global.columns = FORM NER\nEU\tB-ORG\n#\tO\n\nBrussels\tB-LOC\n",
        {"label_field": "NER"},
    ),
}


@pytest.mark.parametrize("quirk", COLUMNS)
def test_words_and_tags_are_read_from_columns(tmp_path: Path, quirk: str) -> None:
    name, content, data = COLUMNS[quirk]
    (tmp_path / name).write_bytes(content.encode())
    assert [(e.text, e.labels) for e in examples_in(tmp_path / name, Tags(8), **data)] == WORDS


def test_squads_tree_is_read_as_questions(tmp_path: Path) -> None:
    asked = [
        {"id": "1", "question": "who?", "answers": [{"text": "dog", "answer_start": 2}]},
        {"id": "2", "question": "why?", "answers": [], "is_impossible": True},
    ]
    tree = {"version": "v2", "data": [{"title": "t", "paragraphs": [{"context": "a dog", "qas": asked}]}]}
    for indent in (None, 2):
        (tmp_path / "f.json").write_text(json.dumps(tree, indent=indent))
        found = examples_in(tmp_path / "f.json", Answers(8))
        assert [(e.text, e.pair, e.target) for e in found] == [("a dog", "who?", (2, 5)), ("a dog", "why?", (0, 0))]
        assert found[0].group == found[1].group


# ------------------------------------------------------------------------------------------------ what is refused


TWO = "text,label\na,x\nb,y\n" * 1 + "c,x\n" * 9 + "d,y\n" * 9
REFUSED: dict[str, tuple[Task, dict[str, str], dict[str, Any], str]] = {
    "no such field": (
        Classes(8),
        {"train.csv": "sentence,labels\na,x\n"},
        {},
        "no field 'text'; it has sentence, labels",
    ),
    "a field by a name that is near": (
        Classes(8),
        {"train.csv": "text,n,labels\na,1,x\n"},
        {},
        r"no field 'label' \(did you mean labels\?\); it has labels, .*; choose one with --data.label_field",
    ),
    "a field twice": (Classes(8), {"train.csv": "text,label,label\na,x,y\n"}, {}, "'label' is there 2 times"),
    "a ragged row": (
        Classes(8),
        {"train.csv": 'text,label\n"a\nb",x\nc,d,y\n'},
        {},
        r"line 4: has 3 fields \(divided by commas\), the first line names 2;",
    ),
    "a ragged row of tabs": (
        Classes(8),
        {"train.tsv": "text\tlabel\na\tx\nb\n"},
        {},
        "line 3: has 1 field .divided by tabs",
    ),
    "no JSON": (Classes(8), {"train.jsonl": '{"text": "a", "label": 1}\n{oops\n'}, {}, "line 2: not JSON"),
    "a field that a later row lacks": (
        Classes(8),
        {"train.jsonl": '{"text": "a", "label": 1}\n{"text": "b"}\n'},
        {},
        "line 2: no field 'label'; it has text",
    ),
    "one class": (Classes(8), {"train.csv": "text,label\na,x\nb,x\n"}, {}, "every row has the label 'x', so"),
    "no labels": (Classes(8), {"train.csv": "text,label\na,\nb, \n"}, {}, r"no labelled rows in it \(2 rows without a"),
    "no rows": (Classes(8), {"train.csv": "text,label\n"}, {}, "no labelled rows in it"),
    "an empty file": (Classes(8), {"train.csv": ""}, {}, "the file is empty"),
    "an empty file to validate on": (
        Classes(8),
        {"train.csv": TWO, "val.csv": "text,label\n"},
        {},
        "val.csv: there are no",
    ),
    "a label that is not known": (
        Classes(8),
        {"train.csv": TWO, "val.csv": "text,label\na,x\nb,X\n"},
        {},
        r"val.csv, line 3: the label 'X' is not among those of the training data \(did you mean x\?\): x, y",
    ),
    "several labels where one is wanted": (
        Classes(8),
        {"train.jsonl": '{"text": "a", "label": ["x", "y"]}\n'},
        {},
        "holds a list, not a label; for several labels at once: --objective.multi_label true",
    ),
    "words for a number": (Numbers(8), {"train.csv": "text,label\na,three\n"}, {}, "line 2: .*'three', not a number"),
    "one number": (Numbers(8), {"train.csv": "text,label\na,1.1\nb,1.1\nc,1.1\n"}, {}, "every row has the number 1.1"),
    "old ends of lines": (Classes(8), {"train.csv": "text,label\ra,x\rb,y\r"}, {}, "line 1: not a row of a table"),
    "an infinite number": (Numbers(8), {"train.csv": "text,label\na,inf\n"}, {}, "numbers may be as large as"),
    "too short a seq_len": (Classes(5), {"train.csv": TWO}, {}, "--seq_len 5: the tokenizer adds 2 tokens of its own"),
    "a pair's field that is not there": (Classes(8), {"train.csv": TWO}, {"pair_field": "b"}, "no field 'b'"),
    "no target": (Texts(8), {"train.csv": "source,goal\na,b\n"}, {}, "no field 'target'.*--data.target_field"),
    "one row": (Texts(8), {"train.csv": "source,target\na,b\n"}, {}, "1 row can't be parted.*give --data.val"),
    "a ragged column": (Tags(8), {"train.conll": "a O\nb\n"}, {}, "line 2: has 1 column, where the first word has 2"),
    "an unknown kind of file": (
        Classes(8),
        {"train.doc": "a"},
        {},
        "unknown kind of file; expected one ending in .csv",
    ),
    "bytes that are no text": (Classes(8), {"train.csv": "text,label\n\0\0,x\n"}, {}, "not text"),
}


def made(folder: Path, tokenizer: str, task: Task, files: dict[str, str], **data: Any) -> Labelled:
    for name, content in files.items():
        (folder / name).write_text(content)
    train, *val = [str(folder / name) for name in files]
    found = open_labelled([train], val[0] if val else None, task, tokenizer, DataConfig(**data), folder / "cache")
    assert found.train[0].labelled is not None
    return found.train[0].labelled


@pytest.mark.parametrize("quirk", REFUSED)
def test_what_cant_be_learned_from_is_told_in_one_sentence(tmp_path: Path, tokenizer: str, quirk: str) -> None:
    task, files, data, expected = REFUSED[quirk]
    with pytest.raises(UserError, match=expected) as caught:
        made(tmp_path, tokenizer, task, files, **data)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "corpora").glob("labelled*")) or "val" in expected


def test_a_name_that_is_near_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(TWO)
    with pytest.raises(UserError, match=r"no such file or folder \(did you mean train\.csv\?"):
        open_table(str(tmp_path / "trian.csv"), DataConfig(), sha256_of)


# ------------------------------------------------------------------------------------------------ what is counted


def test_labels_are_numbered_counted_and_held_out_in_proportion(tmp_path: Path, tokenizer: str) -> None:
    rows = "text,label\n" + "".join(f"a,{label}\n" for label in ["10"] * 70 + ["9"] * 20 + ["b"] * 10)
    labelled = made(tmp_path, tokenizer, Classes(8), {"train.csv": rows + "a,\n" * 3})
    assert labelled.names == ("9", "10", "b")
    assert labelled.train.counts == (18, 63, 9)
    assert labelled.val.counts == (2, 7, 1)
    assert labelled.left_out == {"without a label": 3}


def test_ten_thousand_classes_are_fine(tmp_path: Path, tokenizer: str) -> None:
    rows = "text,label\n" + "".join(f"a,c{number}\n" for number in range(10_000))
    assert len(made(tmp_path, tokenizer, Classes(8), {"train.csv": rows}).names) == 10_000


def test_questions_on_one_context_are_not_parted(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"question": f"q{i}", "context": f"c{i % 12} " * 3, "answers": []} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = open_labelled(
        [str(tmp_path / "train.jsonl")], None, Answers(16), tokenizer, DataConfig(), tmp_path / "cache"
    )
    assert found.train[0].labelled is not None
    assert found.train[0].labelled.val.rows == 5


def test_rows_without_labels_are_kept_to_be_predicted(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "test.tsv").write_text("text\na\n\nb\n")
    corpus, rows = open_rows(str(tmp_path / "test.tsv"), Classes(8), tokenizer, ["x", "y"], DataConfig(), tmp_path)
    assert corpus.num_documents == 2
    assert [row.text("text") for row in rows.table.rows(rows.columns)] == ["a", "b"]
    (tmp_path / "some.jsonl").write_text('{"text": "a", "label": "y"}\n{"text": "b"}\n{"text": "c", "label": null}\n')
    _, rows = open_rows(str(tmp_path / "some.jsonl"), Classes(8), tokenizer, ["x", "y"], DataConfig(), tmp_path)
    assert [example.labels for example in rows.examples()] == [("y",), (), ()]
    (tmp_path / "odd.tsv").write_text("text\tlabel\na\tz\n")
    with pytest.raises(UserError, match="the label 'z' is not among"):
        open_rows(str(tmp_path / "odd.tsv"), Classes(8), tokenizer, ["x", "y"], DataConfig(), tmp_path)


def test_a_corpus_is_made_once_and_anew_when_its_rows_change(tmp_path: Path, tokenizer: str) -> None:
    made(tmp_path, tokenizer, Classes(8), {"train.csv": TWO})
    [folder] = (tmp_path / "cache" / "corpora").iterdir()
    written = (folder / "index.json").stat().st_mtime_ns
    made(tmp_path, tokenizer, Classes(8), {"train.csv": TWO})
    assert (folder / "index.json").stat().st_mtime_ns == written
    made(tmp_path, tokenizer, Classes(8), {"train.csv": TWO + "e,x\n"})
    made(tmp_path, tokenizer, Classes(9), {"train.csv": TWO})
    assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 3


def test_held_out_texts_that_are_trained_on_are_told(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {"val.csv": "text,label\na,x\nq,y\nb,x\n"}
    made(tmp_path, tokenizer, Classes(8), {"train.csv": "text,label\n" + "a,x\n" * 9 + "b,y\n"} | held_out)
    assert "the texts of 2 of 3 held-out rows are trained on too" in " ".join(capsys.readouterr().out.split())
