"""Rows for trainers that make batches themselves: the run's examples, as transformers' models take them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)

from sslm import CausalLM, DataConfig, DataModule, MaskedLM, SpanCorruption, UserError
from sslm.training.module import Objective

MODELS: list[tuple[type[Objective], Any, PreTrainedConfig]] = [
    (CausalLM, AutoModelForCausalLM, LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2)),
    (MaskedLM, AutoModelForMaskedLM, BertConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2)),
    (
        SpanCorruption,
        AutoModelForSeq2SeqLM,
        T5Config(d_model=16, d_kv=8, d_ff=32, num_heads=2, decoder_start_token_id=0),
    ),
]


def data_for(objective: Objective, text: Path, cache: Path, **settings: Any) -> DataModule:
    corpus = DataConfig(
        train=str(text),
        document_separator="\n-----\n",
        tokenizer="bpe:512",
        cache_dir=str(cache),
        val_sequences=8,
        **settings,
    )
    return DataModule(corpus, objective.recipe, seq_len=64, batch_size=8, total_steps=3)


@pytest.mark.parametrize(
    ("objective_class", "auto_class", "config"), MODELS, ids=lambda item: getattr(item, "__name__", "")
)
def test_transformers_losses_of_rows_are_those_of_the_runs_batches(
    objective_class: type[Objective], auto_class: Any, config: PreTrainedConfig, text: Path, cache: Path
) -> None:
    config.vocab_size, config.num_hidden_layers = 800, 1
    objective = objective_class(auto_class.from_config(config))
    data = data_for(objective, text, cache)
    network = objective.build(data).eval()
    for which, batches in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        rows = data.rows(which)  # type: ignore[arg-type]
        sizes = []
        for ours, theirs in zip(batches, DataLoader(rows, batch_size=8), strict=True):
            labels = ours["tensors"]["labels"]
            expected = network(**ours["tensors"]).sum() / (labels != -100).sum()
            assert torch.allclose(network.model(**theirs).loss, expected, rtol=1e-5)
            assert torch.equal(theirs.get("shift_labels", theirs["labels"]), labels)
            sizes.append(len(labels))
        assert sum(sizes) == len(rows)


def test_a_row_is_the_same_alone_and_in_any_company(text: Path, cache: Path) -> None:
    rows = data_for(MaskedLM(BertConfig()), text, cache).rows()
    together = rows.__getitems__([7, 0, 23])
    for number, row in zip((7, 0, 23), together, strict=True):
        assert all(torch.equal(row[name], tensor) for name, tensor in rows[number].items())
    with pytest.raises(IndexError):
        rows[24]


def test_rows_do_not_keep_documents_apart(text: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="document_mask"):
        data_for(CausalLM(LlamaConfig()), text, cache, document_mask=True).rows()
