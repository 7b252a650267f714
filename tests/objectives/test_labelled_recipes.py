"""Batches of labelled rows: they are what transformers' tokenizers make of texts, and labels are where they belong."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sslm.config import DataConfig
from sslm.data.corpus.labelled import Tally
from sslm.data.labelled.task import field_of, packed, unpacked
from sslm.data.stream.recipe import IGNORED, Arrays, Examples, Recipe, is_target
from sslm.data.stream.streams import Streams, open_streams, open_to_predict
from sslm.objectives.classification import ClassificationRecipe
from sslm.objectives.extraction import ExtractionRecipe
from sslm.objectives.labelled import LabelledRecipe
from sslm.objectives.regression import RegressionRecipe
from sslm.objectives.tagging import TaggingRecipe
from sslm.objectives.text_to_text import CausalTextToTextRecipe, TextToTextRecipe
from sslm.system.errors import UserError
from tests.support.vocabularies import TEXTS, bare, save_tokenizer

KINDS = ("bert", "roberta", "gpt2", "t5")
ODD = [*TEXTS, "", " ", "a\tb\nc", "[SEP] is <s> and </s>", "e\u0301\u200d\ufe0f 👩‍👩‍👧", "word " * 60]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: str(save_tokenizer(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}


def opened(folder: Path, rows: Sequence[dict[str, Any]], recipe: Recipe, tokenizer: str, **data: Any) -> Streams:
    """Streams of some rows, all of which are trained on and validated on."""
    file = folder / f"rows-{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = {"seq_len": 24, "batch_size": 1, **{key: data.pop(key) for key in ("seq_len",) if key in data}}
    config = DataConfig(train=str(file), val=str(file), tokenizer=tokenizer, cache_dir=str(folder / "cache"), **data)
    return open_streams(config, recipe, **setting)


def in_order(streams: Streams, recipe: Recipe) -> Arrays:
    """The batch of all rows, in the order of the file."""
    stream = streams.val
    examples = stream.read(stream.places_of(0, np.arange(stream.num_windows))).rows(slice(None))
    return recipe.make_batch(examples, streams.vocabulary, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_pair", [False, True])
def test_batches_are_what_the_tokenizer_makes_of_texts_and_pairs(
    tmp_path: Path, tokenizers: dict[str, str], kind: str, is_pair: bool
) -> None:
    odd = [text.replace("</s>", "") for text in ODD] if kind == "t5" else ODD  # transformers' T5 takes it for its own
    rows = [{"text": a, "label": i % 3, "other": b} for i, (a, b) in enumerate(zip(odd, odd[::-1], strict=True))]
    recipe = ClassificationRecipe()
    streams = opened(tmp_path, rows, recipe, tokenizers[kind], pair_field="other" if is_pair else None)
    tokenizer = AutoTokenizer.from_pretrained(tokenizers[kind])
    assert streams.vocabulary is not None
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # any: GPT-2 has none, ours is new
    batch = in_order(streams, recipe)
    expected = tokenizer(
        [row["text"] for row in rows],
        [row["other"] for row in rows] if is_pair else None,
        truncation="longest_first",
        padding="max_length",
        max_length=24,
        split_special_tokens=True,
        return_tensors="np",
    )
    is_empty = expected["attention_mask"].sum(axis=1) == 0  # GPT-2's of an empty text: one token at least is ours
    assert batch["input_ids"][is_empty, 0].tolist() == [streams.vocabulary.end] * int(is_empty.sum())
    mask = expected["attention_mask"][~is_empty]
    assert (batch["attention_mask"][~is_empty] == mask).all()
    assert (np.where(mask, batch["input_ids"][~is_empty] - expected["input_ids"][~is_empty], 0) == 0).all()
    assert (batch["input_ids"][~is_empty][mask == 0] == streams.vocabulary.pad).all()
    assert ("token_type_ids" in batch) == (kind == "bert")
    if kind == "bert":
        assert (batch["token_type_ids"] == expected["token_type_ids"]).all()
    assert batch["labels"].tolist() == [[row["label"]] for row in rows]


def test_several_labels_are_a_number_for_each(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    rows = [{"text": "a", "label": [f"l{n}" for n in range(i, 70, 7)]} for i in range(7)]
    rows.append({"text": "none", "label": []})
    recipe = ClassificationRecipe(multi_label=True)
    streams = opened(tmp_path, rows, recipe, tokenizers["bert"])
    assert streams.vocabulary is not None
    names = streams.vocabulary.labels
    found = [{names[i] for i in np.flatnonzero(row)} for row in in_order(streams, recipe)["labels"]]
    assert found == [set(row["label"]) for row in rows]


def test_numbers_keep_their_value_and_sign(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    targets: list[Any] = [1.5, -2, "3.25", 0, -100, "nan", None, 1e-30]
    recipe = RegressionRecipe()
    streams = opened(tmp_path, [{"text": "a", "label": t} for t in targets], recipe, tokenizers["bert"])
    labels = in_order(streams, recipe)["labels"][:, 0]
    assert labels.dtype == np.float32
    assert labels.tolist() == np.array([1.5, -2, 3.25, 0, -100, 1e-30], np.float32).tolist()
    [corpus] = [source.corpus for source in streams.val.sources]
    assert corpus.labelled is not None
    assert corpus.labelled.left_out == {"without a number": 2}


# ------------------------------------------------------------------------------------------------ tags


@pytest.mark.parametrize("kind", KINDS)
def test_a_tag_stands_at_its_words_first_token(tmp_path: Path, tokenizers: dict[str, str], kind: str) -> None:
    words = ["Übermorgen", "gehen", "", "wir", "nach", "München", "🙂", "\u200b", "!", "New York", "[SEP]"]
    tags = [f"T{i}" for i in range(len(words))]
    recipe = TaggingRecipe()
    rows = [{"tokens": words, "tags": tags}, {"tokens": ["x"], "tags": ["T0"]}]
    streams = opened(tmp_path, rows, recipe, tokenizers[kind], seq_len=96)
    assert streams.vocabulary is not None
    batch = in_order(streams, recipe)
    tokenizer = AutoTokenizer.from_pretrained(tokenizers[kind])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert (batch["labels"][0][batch["attention_mask"][0] == 0] == IGNORED).all()
    places = np.flatnonzero(labels != IGNORED)
    found = [streams.vocabulary.labels[n] for n in labels[places]]
    assert found == sorted(found, key=lambda tag: int(tag[1:]))
    assert {"T0", "T1", "T3", "T4", "T5", "T8", "T9", "T10"} <= set(found)
    assert "T2" not in found
    for place, tag in zip(places, found, strict=True):
        token = tokenizer.convert_ids_to_tokens(int(ids[place])).lstrip("Ġ▁")
        word = words[int(tag[1:])]
        if word.isascii() and token != tokenizer.unk_token:
            assert word.lower().startswith(token.lower()[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_word_of_a_long_sentence_is_tagged_once(tmp_path: Path, tokenizers: dict[str, str], kind: str) -> None:
    words = ["München", "", "dog", "Übermorgen!"] * 30
    recipe = TaggingRecipe()
    streams = opened(tmp_path, [{"tokens": words, "tags": ["A", "B", "C", "D"] * 30}], recipe, tokenizers[kind])
    stream = streams.val
    examples = stream.read(stream.places_of(0, np.arange(stream.num_windows))).rows(slice(None))
    fields, labels = recipe.fields(examples, streams.vocabulary), in_order(streams, recipe)["labels"]
    assert stream.num_windows > 4
    tagged = fields["words"][fields["words"] > 0]
    assert tagged.tolist() == [number for number, word in enumerate(words, 1) if word]
    assert labels[labels != IGNORED].tolist() == [(number - 1) % 4 for number in tagged]
    assert stream.sources[0].corpus.labelled is not None
    assert stream.sources[0].corpus.labelled.val == Tally(1, (30, 30, 30, 30))


def test_tags_and_words_that_differ_in_number_are_refused(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B"]}, {"tokens": ["a", "b"], "tags": ["O"]}]
    with pytest.raises(UserError, match="line 2: has 2 words and 1 tag"):
        opened(tmp_path, rows, TaggingRecipe(), tokenizers["bert"])


# ------------------------------------------------------------------------------------------------ answers


def question(context: str, answer: str | None, text: str = "who is it?") -> dict[str, Any]:
    starts = [] if answer is None else [context.index(answer)]
    answers = {"text": [] if answer is None else [answer], "answer_start": starts}
    return {"question": text, "context": context, "answers": answers}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(
    words=st.lists(
        st.sampled_from(["the", "dog", "Hund", "🙂", "naïve", "cat's", "München", "a"]), min_size=3, max_size=60
    )
)
def test_windows_hold_the_answer_where_the_labels_say(
    tmp_path: Path, tokenizers: dict[str, str], kind: str, words: list[str]
) -> None:
    context, answer = " ".join(words), " ".join(words[1:3])
    recipe = ExtractionRecipe(overlap=6)
    rows = [question(context, answer), question(context, None), question(context, answer, "why so long " * 30)]
    folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    streams = opened(folder, rows, recipe, tokenizers[kind], seq_len=32)
    stream = streams.val
    examples = stream.read(stream.places_of(0, np.arange(stream.num_windows))).rows(slice(None))
    batch, fields = recipe.make_batch(examples, streams.vocabulary, 0), recipe.fields(examples, streams.vocabulary)
    assert set(fields["row"][:, 0].tolist()) == {0, 1, 2}
    for row in range(3):
        here = np.flatnonzero(fields["row"][:, 0] == row)
        covered = np.zeros(len(context), bool)
        found = []
        for window in here:
            for start, end in zip(fields["starts"][window], fields["ends"][window], strict=True):
                covered[start : max(end, 0)] = True
            first, last = batch["labels"][window]
            if last:
                found.append(context[fields["starts"][window, first] : fields["ends"][window, last]].strip())
        assert covered[[i for i, character in enumerate(context) if not character.isspace()]].all()
        assert set(found) <= {answer}
        assert bool(found) == (row != 1) or len(here) > 1


def test_an_answer_that_is_elsewhere_is_found_and_one_that_is_nowhere_left_out(
    tmp_path: Path, tokenizers: dict[str, str]
) -> None:
    rows = [question("one two three two", "two") for _ in range(3)]
    rows[0]["answers"] = {"text": ["two"], "answer_start": [12]}  # off by two: the nearest is meant
    rows[1]["answers"] = "three"
    rows[2]["answers"] = ["four"]
    recipe = ExtractionRecipe()
    streams = opened(tmp_path, rows, recipe, tokenizers["bert"])
    stream = streams.val
    examples = stream.read(stream.places_of(0, np.arange(stream.num_windows))).rows(slice(None))
    fields = recipe.fields(examples, streams.vocabulary)
    starts = np.take_along_axis(fields["starts"], fields["labels"][:, :1], axis=1)[:, 0]
    assert starts.tolist() == [14, 8]
    assert stream.sources[0].corpus.labelled is not None
    assert stream.sources[0].corpus.labelled.left_out == {"whose answer is not in the context": 1}


# ------------------------------------------------------------------------------------------------ text to text


@pytest.mark.parametrize("kind", ["t5", "roberta", "gpt2"])
def test_sources_and_targets_are_framed_and_end(tmp_path: Path, tokenizers: dict[str, str], kind: str) -> None:
    rows = [{"source": a, "target": b} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    recipe = TextToTextRecipe(max_target_len=16, prefix="say: ")
    streams = opened(tmp_path, rows, recipe, tokenizers[kind])
    assert streams.vocabulary is not None
    tokenizer, end = AutoTokenizer.from_pretrained(tokenizers[kind]), streams.vocabulary.end
    batch = in_order(streams, recipe)
    assert batch["input_ids"].shape == (5, 24)
    assert batch["labels"].shape == (5, 16)
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        for text, most, found in (
            ("say: " + row["source"], 24, ids[mask == 1]),
            (row["target"], 16, labels[labels >= 0]),
        ):
            expected = tokenizer(text, truncation=True, max_length=most - (kind == "gpt2"))["input_ids"]
            assert found.tolist() == expected + ([end] if kind == "gpt2" else [])


def test_a_causal_model_is_scored_on_targets_alone(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    rows = [{"source": "the dog", "target": "der Hund"}, {"source": "word " * 50, "target": "one two three " * 20}]
    recipe = CausalTextToTextRecipe()
    streams = opened(tmp_path, rows, recipe, tokenizers["gpt2"])
    assert streams.vocabulary is not None
    tokenizer, end = AutoTokenizer.from_pretrained(tokenizers["gpt2"]), streams.vocabulary.end
    batch = in_order(streams, recipe)
    source, target = (tokenizer(text)["input_ids"] for text in ("the dog\n", "der Hund"))
    whole = [*source, *target, end]
    assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == whole
    assert batch["labels"][0][: len(whole)].tolist() == [*[IGNORED] * (len(source) - 1), *target, end, IGNORED]
    ids, labels = batch["input_ids"][1], batch["labels"][1]
    assert (labels != IGNORED).sum() == 12
    assert labels[labels != IGNORED].tolist() == tokenizer("one two three " * 20)["input_ids"][:12]
    assert ids[12] == tokenizer("\n")["input_ids"][0]  # the separator stays
    assert (ids[1:][labels[:-1] != IGNORED] == labels[:-1][labels[:-1] != IGNORED]).all()


# ------------------------------------------------------------------------------------------------ records


@given(records=st.lists(st.tuples(*[st.lists(st.integers(0, 2**32 - 1), max_size=5)] * 3), min_size=1, max_size=8))
def test_records_come_back_as_they_were_written(records: list[tuple[list[int], ...]]) -> None:
    ids, ends = packed(records)
    rows = np.zeros((len(records), 18), np.int64)
    for row, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows[row, : end - start] = ids[start:end]
    places = unpacked(rows, ("a", "b", "c"))
    for number, name in enumerate(("a", "b", "c")):
        values = field_of(rows, places[name], 5, -1).tolist()
        assert [row[: len(record[number])] for row, record in zip(values, records, strict=True)] == [
            record[number] for record in records
        ]
        assert all(set(row[len(record[number]) :]) <= {-1} for row, record in zip(values, records, strict=True))


# ------------------------------------------------------------------------------------------------ rows to predict

UNLABELLED: list[tuple[LabelledRecipe, list[dict[str, Any]]]] = [
    (ClassificationRecipe(), [{"text": "a dog"}, {"text": ""}]),
    (ClassificationRecipe(multi_label=True), [{"text": "a dog"}, {"text": ""}]),
    (RegressionRecipe(), [{"text": "a dog"}, {"text": ""}]),
    (TaggingRecipe(), [{"tokens": ["a", "dog"]}, {"tokens": []}]),
    (ExtractionRecipe(overlap=4), [{"context": "a dog " * 40, "question": "who?"}, {"context": "", "question": "?"}]),
    (TextToTextRecipe(), [{"source": "a dog"}, {"source": ""}]),
    (CausalTextToTextRecipe(), [{"source": "a dog"}, {"source": ""}]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(len(UNLABELLED)))
def test_rows_without_labels_are_read_as_those_with(
    tmp_path: Path, tokenizers: dict[str, str], kind: str, case: int
) -> None:
    recipe, rows = UNLABELLED[case]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    opened = open_to_predict(str(file), data, recipe, 24, tokenizers[kind], ["O", "B"])
    stream = opened.stream
    examples = stream.read(stream.places_of(0, np.arange(stream.num_windows))).rows(slice(None))
    batch, fields = recipe.make_batch(examples, opened.vocabulary, 0), recipe.fields(examples, opened.vocabulary)
    assert sorted(set(fields["row"][:, 0].tolist())) == [0, 1]
    assert batch["input_ids"].shape[1] == 24
    assert batch["attention_mask"].any(axis=1).all()
    if not isinstance(recipe, TextToTextRecipe) and not (
        isinstance(recipe, ClassificationRecipe) and recipe.multi_label
    ):
        assert not is_target(batch["labels"]).any()
    if isinstance(recipe, TaggingRecipe):
        assert [set(row.tolist()) - {0, IGNORED} for row in fields["words"]] == [{1, 2}, set()]
    texts = [list(row.values.values()) for row in opened.tables[0].table.rows(opened.tables[0].columns)]
    assert texts == [list(row.values()) for row in rows]


# ------------------------------------------------------------------------------------------------ the examples' numbers


def batch_of(
    recipe: LabelledRecipe, seq_len: int, record: Sequence[Sequence[int]], labels: Sequence[str] = ()
) -> Arrays:
    """The batch of one record, without padding's row and axis."""
    vocabulary = replace(bare(), labels=tuple(labels))
    ids, _ = packed([record])
    tokens = np.zeros((1, recipe.window_len(seq_len, vocabulary)), np.int64)
    tokens[0, : len(ids)] = ids
    nought = np.zeros(1, np.int64)
    batch = recipe.make_batch(Examples(tokens, nought, nought, nought, np.array([len(ids)])), vocabulary, 0)
    return {name: array[0] for name, array in batch.items()}


EXAMPLES: list[tuple[LabelledRecipe, int, list[list[int]], list[str], dict[str, Any]]] = [
    (
        ClassificationRecipe(),
        6,
        [[0], [2, 7, 9, 3], [], [1]],
        ["bad", "good"],
        {"input_ids": [2, 7, 9, 3, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "labels": [1]},
    ),
    (
        RegressionRecipe(),
        6,
        [[0], [2, 7, 9, 3], [], [int(np.float32(4.5).view(np.uint32))]],
        [],
        {"input_ids": [2, 7, 9, 3, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "labels": [4.5]},
    ),
    (
        TaggingRecipe(),
        8,
        [[0], [2, 7, 9, 8, 3], [], [0, 1, 0, 2, 0], [0, 2, 0, 1, 0]],
        ["O", "B-PER"],
        {
            "input_ids": [2, 7, 9, 8, 3, 0, 0, 0],
            "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0],
            "labels": [-100, 1, -100, 0, -100, -100, -100, -100],
        },
    ),
    (
        ExtractionRecipe(),
        10,
        [
            [0],
            [2, 7, 8, 3, 11, 12, 13, 3],
            [0, 0, 0, 0, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 1, 2, 0],
            [0, 0, 0, 0, 1, 2, 3, 0],
            [5, 6],
        ],
        [],
        {
            "input_ids": [2, 7, 8, 3, 11, 12, 13, 3, 0, 0],
            "token_type_ids": [0, 0, 0, 0, 1, 1, 1, 1, 0, 0],
            "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
            "context": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0],
            "labels": [5, 6],
        },
    ),
    (
        TextToTextRecipe(),
        6,
        [[0], [7, 8, 9, 1], [5, 6, 1]],
        [],
        {"input_ids": [7, 8, 9, 1, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "labels": [5, 6, 1, -100, -100, -100]},
    ),
    (
        CausalTextToTextRecipe(),
        6,
        [[0], [7, 8, 9, 4], [5, 6, 1]],
        [],
        {"input_ids": [7, 8, 9, 4, 5, 6], "attention_mask": [1, 1, 1, 1, 1, 1], "labels": [-100, -100, -100, 5, 6, 1]},
    ),
]


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: type(case[0]).__name__)
def test_the_example_in_the_docstring_holds(case: Any) -> None:
    recipe, seq_len, record, labels, expected = case
    assert {name: array.tolist() for name, array in batch_of(recipe, seq_len, record, labels).items()} == expected
