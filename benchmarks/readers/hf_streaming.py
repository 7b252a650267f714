"""Hugging Face datasets, streaming: nothing prepared, the text is tokenised while it is read."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torchdata.stateful_dataloader import StatefulDataLoader

from . import SEED, Share, pair, text_files
from .hf_map import tokenise

prepare = None


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        files = [str(file) for file in text_files(prepared)]
        rows: Any = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
        # One input shard at a time: with its default of ten, the state of datasets 5.2 can't be loaded by two workers.
        rows = rows.shuffle(seed=SEED, buffer_size=1000, max_buffer_input_shards=1)
        rows = split_dataset_by_node(rows, share.rank, share.world)
        rows = rows.map(
            functools.partial(tokenise, tokenizer=tokenizer, length=share.seq_len + 1),
            batched=True,
            batch_size=100,
            remove_columns=["text"],
        )
        self.loader: Any = StatefulDataLoader(
            rows.with_format("torch"), batch_size=share.rows, drop_last=True, **share.loader_options()
        )
        if state:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.loader:
            yield pair(batch["tokens"])

    def state(self) -> Any:
        return self.loader.state_dict()
