"""sslm inspect: what is shown is what is trained on, and nothing of it steers the terminal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sslm.cli.inspect import main
from sslm.cli.inspect.marks import Kind, Run, document_starts, input_kinds, plain_kinds, runs
from sslm.cli.inspect.sections import Shown
from sslm.config import DataConfig
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Arrays
from sslm.objectives import load_objective
from tests.support.trained import byte_level
from tests.support.vocabularies import bare

Captured = pytest.CaptureFixture[str]
MASK, END, SENTINEL = 4, 1, 199


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred short documents, some with what would steer a terminal, and a tokenizer of their text."""
    folder = tmp_path_factory.mktemp("documents")
    hostile = "Red \x1b[31mand\x1b[0m \u202edoes\r go back.\a"
    texts = [hostile, "The cat sat on the mat.\nIt slept.", "今天 a short one."] * 100
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    byte_level(" ".join(texts), 350).save_pretrained(folder / "tokenizer")
    return folder


def flags(documents: Path, *more: str) -> list[str]:
    where = ["--data.tokenizer", str(documents / "tokenizer"), "--data.cache_dir", str(documents / "cache")]
    return [str(documents / "texts.jsonl"), *where, "--seq_len", "32", "--batch_size", "4", *more]


def data_of(documents: Path, objective: str, seq_len: int | str = 32) -> DataModule:
    text, tokenizer, cache = (str(documents / name) for name in ("texts.jsonl", "tokenizer", "cache"))
    config = DataConfig(train=text, tokenizer=tokenizer, cache_dir=cache, val_sequences=4)
    data = DataModule(config, load_objective(objective).recipe_class(), seq_len=seq_len, batch_size=4)
    data.setup()
    return data


@pytest.mark.parametrize("seq_len", [32, "16, 32 from 128 tokens"])
@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption"])
def test_rows_are_those_of_the_loader(objective: str, seq_len: int | str, documents: Path) -> None:
    data = data_of(documents, objective, seq_len)
    rows = list(Shown(data, writes_target=False)._rows(2, 9))
    expected = []
    for step, batch in zip(range(4), data.train_dataloader(), strict=False):
        pieces = batch.get("pieces", 1)
        expected += [(step, n, i, batch) for i, n in enumerate(batch["positions"].tolist()) if n >= 2 * pieces]
    assert [row[:2] for row in rows] == [row[:2] for row in expected[:9]]
    for (_, _, row), (_, _, i, batch) in zip(rows, expected, strict=False):
        for name, tensor in batch["tensors"].items():
            assert np.array_equal(row[name], tensor[i].numpy())


def row_of(inputs: list[int], labels: list[int], **more: list[int]) -> Arrays:
    return {name: np.array(row) for name, row in {"input_ids": inputs, "labels": labels, **more}.items()}


def test_kinds_of_a_masked_row() -> None:
    inputs, labels = [2, 10, MASK, 12, 13, 3, 0, 0], [-100, -100, 11, 99, 13, -100, -100, -100]
    row = row_of(inputs, labels, attention_mask=[1, 1, 1, 1, 1, 1, 0, 0])
    kinds = input_kinds(row, bare(), in_place=True, predicts_next_token=False)
    names = "SPECIAL TEXT MASKED REPLACED KEPT SPECIAL PADDING PADDING"
    assert [kind.name for kind in kinds] == names.split()
    shown = list(runs(kinds, row["input_ids"], row["labels"], set()))
    assert [(run.ids, run.targets) for run in shown[2:5]] == [([MASK], [11]), ([12], [99]), ([13], [13])]
    assert shown[-1] == Run(Kind.PADDING, [0, 0], [], False)


def test_padding_of_next_tokens_begins_after_the_last_that_is_predicted() -> None:
    row = row_of([10, 11, 12, 0, 0], [11, 12, -100, -100, -100])
    kinds = input_kinds(row, bare(), in_place=False, predicts_next_token=True)
    assert [kind is Kind.PADDING for kind in kinds] == [False, False, False, True, True]
    full = input_kinds(row_of([10, 11], [11, 12]), bare(), in_place=False, predicts_next_token=True)
    assert full == [Kind.TEXT, Kind.TEXT]


def test_documents_begin_after_an_end_or_with_a_new_segment() -> None:
    kinds = plain_kinds(np.array([10, END, 11, END, -100]), bare())
    assert document_starts(kinds, None) == {2}
    assert document_starts(kinds, np.array([0, 0, 0, 1, -1])) == {3}
    assert [run.begins_document for run in runs(kinds, np.arange(5), None, {2})] == [False, False, True, False, False]


def test_sentinels_are_told_from_text_and_places_without_target() -> None:
    vocabulary = replace(bare(), sentinels=np.array([SENTINEL]))
    assert plain_kinds(np.array([SENTINEL, 10, -100]), vocabulary) == [Kind.SENTINEL, Kind.TEXT, Kind.IGNORED]


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption", "denoising", "token_order"])
def test_all_is_shown_and_nothing_steers_the_terminal(objective: str, documents: Path, capsys: Captured) -> None:
    assert main(flags(documents, "--objective", objective, "--rows", "3")) == 0
    said = capsys.readouterr().out
    assert said.count("Document ") == said.count("Position ") == said.count("Row ") == 3
    assert r"Red \x1b[31mand\x1b[0m \u202edoes\r go back.\x07<|endoftext|>" in said
    assert "The cat sat on the mat.↵\nIt slept.<|endoftext|>" in said
    assert not {*"\x1b\r\a\u202e"} & {*said}
    assert ("  target " in said) == (objective in ("causal_lm", "span_corruption", "denoising"))
    assert ("<extra_id_0>" in said) == (objective == "span_corruption")
    assert ("[<mask>→" in said) == (objective == "masked_lm")


def test_position_and_show_choose(documents: Path, capsys: Captured) -> None:
    assert main(flags(documents, "--show", "documents", "--position", "1", "--rows", "1")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3].startswith("Document 1 (train-00000.bin, from token ")
    assert said[-2:] == ["The cat sat on the mat.↵", "It slept.<|endoftext|>"]
    assert main(flags(documents, "--show", "batches", "--position", "6", "--rows", "1")) == 0
    assert "Row 6 (optimizer step 2)" in capsys.readouterr().out


def test_colours_take_the_place_of_marks(documents: Path) -> None:
    shown = Shown(data_of(documents, "masked_lm"), writes_target=False)
    [cat, dog] = shown.tokenizer("cd", add_special_tokens=False).input_ids
    for kind, marked, plain in ((Kind.REPLACED, "║[c→d]", "║cd"), (Kind.KEPT, "║[=c]", "║c")):
        run = Run(kind, [cat], [dog], True)
        assert shown._marked(run) == marked
        coloured = shown._coloured(run)
        assert coloured.plain == plain
        assert kind.value in [str(span.style) for span in coloured.spans]


def test_labelled_rows_show_the_names_of_their_labels(tmp_path: Path, capsys: Captured) -> None:
    rows = [f"the cat number {n} sat\t{'long' if n % 2 else 'short'}" for n in range(60)]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    more = ["--objective", "classification", "--data.tokenizer", "bpe:300", "--data.cache_dir", str(tmp_path / "cache")]
    assert main([str(tmp_path / "rows.tsv"), *more, "--batch_size", "4", "--seq_len", "32"]) == 0
    said = capsys.readouterr().out
    assert "  target long" in said or "  target short" in said
    assert "places of padding}" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--position", "-1"], "--position -1: expected a whole number, at least 0"),
        (["--rows", "0"], "--rows 0: expected a whole number, at least 1"),
        (["--position", "9" * 5000], "expected a whole number, at least 0 and at most 1,000,000,000,000,000"),
        (["--rows", "1000000000"], "--rows 1000000000: expected a whole number, at least 1 and at most 10,000"),
        (["--shwo", "batches"], "there is no flag --shwo"),
        (["--show", "documents", "--position", "300"], "--position 300: the last document is number 2"),
    ],
)
def test_mistakes_are_told_in_a_sentence(more: list[str], message: str, documents: Path, capsys: Captured) -> None:
    assert main(flags(documents, *more)) == 2
    assert message in capsys.readouterr().err
