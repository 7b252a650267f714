"""The benchmark of objectives runs, and what it measures beside them does what it should."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sslm.data.stream.recipe import Examples
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.objectives.span_corruption import SpanCorruptionRecipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Imported as its script sees its neighbours; the threads that it keeps torch from come back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    num_threads = torch.get_num_threads()
    yield importlib.import_module("objectives")
    torch.set_num_threads(num_threads)


def test_the_benchmark_measures_every_row_and_keeps_no_path(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("\n".join(topics[name] for name in sorted(topics)[:10]))
    assert (
        benchmark.main(
            [
                "--text",
                str(text),
                "--vocab_size",
                "300",
                "--batch_size",
                "2",
                "--seq_len",
                "64",
                "--rounds",
                "2",
                "--seconds",
                "0",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    systems = json.loads(out.read_text())["systems"]
    peers = [system["beside"] for system in systems.values() if system["beside"]]
    assert len(systems) - len(peers) == 12
    assert peers == ["masked_lm, token"] * 2 + ["masked_lm, word"] * 2 + ["span_corruption"] * 2
    for system in systems.values():
        assert len(system["tokens_per_second"]) == 2
        assert min(system["tokens_per_second"]) > 0
    assert str(tmp_path) not in out.read_text()
    table = capsys.readouterr().out
    assert "| **masked_lm, token** |" in table
    assert table.count(" times |") == 6


def test_too_short_a_text_is_refused_with_what_to_give(benchmark: ModuleType, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Too short.")
    with pytest.raises(SystemExit, match="the text has 11 tokens; 140 are needed: give more with --text"):
        benchmark.lay_out(text, 257, 2, 64)


@pytest.mark.parametrize("batched", [False, True])
def test_t5s_loop_makes_batches_like_ours_from_which_the_windows_come_back(
    benchmark: ModuleType, batched: bool
) -> None:
    vocabulary, recipe = small_vocabulary(), SpanCorruptionRecipe()
    tokens = np.arange(1, 4 * 40 + 1).reshape(4, 40) % 90 + 1
    zeros = np.zeros(4, np.int64)
    batch = benchmark.t5_batch(tokens, vocabulary, 0.15, 3.0, np.random.default_rng(0), batched)
    same = recipe.make_batch(Examples(tokens, np.arange(4), zeros, zeros), vocabulary, 0)
    for name, values in batch.items():
        assert values.shape == same[name].shape
        for ours, theirs in zip(same[name], values, strict=True):  # the same sentinels, and the end
            assert [t for t in ours if t >= 100 or t == 0] == [t for t in theirs if t >= 100 or t == 0]
    for row, inputs, labels in zip(tokens, batch["input_ids"], batch["labels"], strict=True):
        assert restored(inputs.tolist(), labels.tolist()) == row.tolist()


def test_t5s_noise_has_its_numbers_and_begins_with_text(benchmark: ModuleType) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        noise = benchmark.random_spans_noise_mask(568, 0.15, 3.0, random)
        assert not noise[0]
        assert (noise.sum(), (np.diff(noise.astype(int)) == 1).sum()) == (85, 28)


def small_vocabulary() -> Vocabulary:
    """Tokens 1 to 99, sentinels from 100 on, and 0 as the end."""
    names = {"</s>": 0, **{f"t{number}": number for number in range(1, 100)}}
    backend = Tokenizer(models.WordLevel(names, unk_token="t1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return vocabulary_of(extended(tokenizer, SpecialTokens(sentinels=2)))


def restored(inputs: list[int], labels: list[int]) -> list[int]:
    """The window: each sentinel of the inputs replaced by what follows it in the labels."""
    spans: dict[int, list[int]] = {}
    for token in labels[:-1]:
        if token >= 100:
            spans[token] = last = []
        else:
            last.append(token)
    return [token for given in inputs[:-1] for token in spans.get(given, [given])]
