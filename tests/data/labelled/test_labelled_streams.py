"""Labelled rows in the stream: each once an epoch, alike for any number of ranks and workers, from any position on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslm.config import DataConfig, SourceConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.data.corpora import open_corpora
from sslm.data.corpus.shards import BadShard, open_corpus
from sslm.data.labelled.baseline import baseline
from sslm.data.module import DataModule
from sslm.data.stream.batches import Batch, Loader, TrainSteps, ValSteps, digest, step_batch, with_tensors
from sslm.data.stream.recipe import IGNORED
from sslm.data.stream.streams import open_streams
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.classification import ClassificationRecipe
from sslm.objectives.regression import RegressionRecipe
from sslm.system.errors import UserError
from tests.support.vocabularies import save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.jsonl has 50 rows whose label is also the sign of a number; other.csv has another label."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = [{"text": f"row {i} " * (i % 9), "label": f"l{i % 2}", "number": -1 - i} for i in range(50)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "other.csv").write_text("text,label\n" + "".join(f"other {i},new\n" for i in range(20)))
    save_tokenizer("bert", folder / "tokenizer")
    return folder


def config(folder: Path, **data: Any) -> DataConfig:
    given = {"train": str(folder / "rows.jsonl"), **data}
    return DataConfig(tokenizer=str(folder / "tokenizer"), cache_dir=str(folder / "cache"), **given)


def module(folder: Path, **data: Any) -> DataModule:
    made = DataModule(config(folder, **data), ClassificationRecipe(), seq_len=16, batch_size=4, total_steps=40)
    made.setup()
    return made


def rows_of(batches: list[Batch]) -> list[list[Any]]:
    return [[*ids, label] for b in batches for ids, label in zip(*lists_of(b), strict=True)]


def lists_of(batch: Batch) -> tuple[list[Any], list[Any]]:
    return batch["tensors"]["input_ids"].tolist(), batch["tensors"]["labels"].tolist()


def test_each_row_comes_once_an_epoch_and_none_that_is_held_out(folder: Path) -> None:
    streams = open_streams(config(folder), ClassificationRecipe(), seq_len=16, batch_size=4)
    recipe, num = ClassificationRecipe(), streams.train.num_windows
    assert (num, streams.val.num_windows) == (45, 5)
    for epoch in range(2):
        examples = streams.train.at(np.arange(epoch * num, (epoch + 1) * num))
        rows = recipe.fields(examples, streams.vocabulary)["row"][:, 0].tolist()
        assert len(set(rows)) == num
    places = streams.val.places_of(0, np.arange(5))
    held_out = recipe.fields(streams.val.read(places).rows(slice(None)), streams.vocabulary)["row"][:, 0]
    assert not set(held_out.tolist()) & set(rows)


@pytest.mark.parametrize("recipe", [ClassificationRecipe(), RegressionRecipe()])
def test_two_ranks_share_the_batches_of_one(folder: Path, recipe: Any) -> None:
    data = config(folder, label_field="number" if isinstance(recipe, RegressionRecipe) else None)
    streams = open_streams(data, recipe, seq_len=16, batch_size=4)
    one, *two = [
        TrainSteps(streams.train, recipe, BatchSizes.even(4), 0, rank, world, streams.vocabulary)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    for step in (0, 11, 12, 13):  # an epoch ends within step 11
        whole, parts = one[step], [steps[step] for steps in two]
        for name, array in whole["tensors"].items():
            assert (np.concatenate([part["tensors"][name] for part in parts]) == array).all()
        shares = [step_batch(with_tensors(part), 1, with_digest=True) for part in parts]
        together = step_batch(with_tensors(whole), 1, with_digest=True)
        assert sum(share["digest"] for share in shares) % 2**64 == together["digest"]
        assert together["scored"] == [4]


def test_a_run_goes_on_at_its_position_whatever_its_workers(folder: Path) -> None:
    data = module(folder)
    steps = data._train_steps_of(data.sizes, substitute=False)
    whole = rows_of(list(Loader(steps, 0, 20)))
    assert (
        rows_of(list(Loader(data._train_steps_of(data.sizes, substitute=False), 7, 20, num_workers=1)))
        == whole[7 * 4 :]
    )
    data.restore(5, 22, [])  # two examples of a batch of another size before
    again = data._train_steps_of(data.sizes, substitute=False)
    assert rows_of([with_tensors(again[5])]) == whole[22:26]


def test_rows_past_the_last_are_not_scored(folder: Path) -> None:
    for recipe, field in ((ClassificationRecipe(), "label"), (RegressionRecipe(), "number")):
        streams = open_streams(config(folder, label_field=field), recipe, seq_len=16, batch_size=4)
        places = streams.val.places_of(0, np.arange(5))
        steps = ValSteps(streams.val, recipe, BatchSizes.even(4), 0, vocabulary=streams.vocabulary, places=places)
        last = steps[1]["tensors"]["labels"][:, 0]
        assert (np.isnan(last) if last.dtype == np.float32 else last == IGNORED).tolist() == [False, True, True, True]
        assert step_batch(with_tensors(steps[1]), 1)["scored"] == [1]


def test_sources_of_a_mixture_have_one_set_of_labels(folder: Path) -> None:
    sources = [
        SourceConfig(str(folder / "rows.jsonl"), weight=3, name="rows"),
        SourceConfig(str(folder / "other.csv"), weight=1, name="other"),
    ]
    data = module(folder, train=None, sources=sources)
    assert data.labels == ("l0", "l1", "new")
    train, val = data.label_counts
    assert (train.rows, val.rows) == (63, 7)
    assert train.counts[2] == 18
    batch = step_batch(with_tensors(data._train_steps_of(data.sizes, substitute=False)[0]), 2)
    assert batch["scored"] == [3, 1]
    assert baseline(data.labels, train, val) is not None


def test_numbers_below_zero_are_targets_and_have_a_baseline(folder: Path) -> None:
    data = DataModule(config(folder, label_field="number"), RegressionRecipe(), seq_len=16, batch_size=4)
    data.setup()
    train, val = data.label_counts
    assert (train.targets, val.targets) == (45, 5)
    numbers = [-1.0 - i for i in range(50)]
    fields = RegressionRecipe().fields
    records = data.held_out.stream.read(data.held_out.places).rows(slice(None))
    rows = fields(records, data.vocabulary)["row"][:, 0].tolist()
    mean = np.mean([numbers[i] for i in range(50) if i not in rows])
    found = baseline((), train, val)
    assert found is not None
    assert found.value == pytest.approx(np.sqrt(np.mean([(numbers[i] - mean) ** 2 for i in rows])))


def test_digests_tell_fractional_numbers_apart() -> None:
    labels = [np.array([x], np.float32) for x in (0.25, 0.5, -0.25, -1.0, np.nan)]
    assert len({digest({"labels": label}, np.arange(1)) for label in labels}) == len(labels)


def test_a_labelled_corpus_is_no_text_and_a_record_that_is_too_long_is_damage(folder: Path) -> None:
    data = module(folder)
    [source] = data.train_stream.sources
    with pytest.raises(UserError, match=r"labelled examples \(classification\), not of text"):
        open_corpora([SourceConfig(str(source.corpus.folder))], None, DataConfig(), folder / "cache")
    assert open_corpus(source.corpus.folder).labelled == source.corpus.labelled
    data.train_stream.window_len = 4
    with pytest.raises(BadShard, match="a record of"):
        data.train_stream.at(np.arange(4))
    with pytest.raises(UserError, match="has 45 labelled examples to train on, and one step takes 64"):
        open_streams(config(folder), ClassificationRecipe(), seq_len=16, batch_size=64)
    with pytest.raises(UserError, match=r"--data\.packing best_fit"):
        open_streams(config(folder, packing="best_fit"), ClassificationRecipe(), seq_len=16, batch_size=4)
    with pytest.raises(UserError, match=r"give a file of them, --data\.train"):
        open_streams(config(folder, train=None), ClassificationRecipe(), seq_len=16, batch_size=4)
    assert CausalLMRecipe().task(16) is None
