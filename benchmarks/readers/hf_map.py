"""Hugging Face datasets, map-style: memory-mapped Arrow rows of one length, read by torchdata's StatefulDataLoader."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from . import END_OF_TEXT, SEED, Share, pair, text_files


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    datasets.disable_progress_bars()
    features = datasets.Features(tokens=datasets.List(datasets.Value("uint16"), length=seq_len + 1))
    files = [str(file) for file in text_files(text)]
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(out / "cache"))
    rows = rows.map(
        functools.partial(tokenise, tokenizer=tokenizer, length=seq_len + 1),
        batched=True,
        remove_columns=["text"],
        features=features,
        num_proc=os.cpu_count(),
    )
    rows.save_to_disk(str(out / "rows"))


def tokenise(batch: dict[str, list[str]], tokenizer: Path, length: int) -> dict[str, Any]:
    """Cut documents into rows of `length` tokens; the rest of a batch of documents is dropped, as usual."""
    import numpy as np

    backend, end = _backend(tokenizer)
    encodings = backend.encode_batch(batch["text"], add_special_tokens=False)
    tokens = np.concatenate([np.array([*e.ids, end], np.uint16) for e in encodings])
    num_rows = len(tokens) // length
    return {"tokens": tokens[: num_rows * length].reshape(num_rows, length)}


@functools.cache
def _backend(tokenizer: Path) -> tuple[Any, int]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return backend, backend.token_to_id(END_OF_TEXT)


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        rows = datasets.load_from_disk(str(prepared / "rows")).with_format("torch")
        sampler: Any = StatefulDistributedSampler(
            rows, num_replicas=share.world, rank=share.rank, shuffle=True, seed=SEED, drop_last=True
        )
        self.loader: Any = StatefulDataLoader(
            rows, batch_size=share.rows, sampler=sampler, drop_last=True, **share.loader_options()
        )
        if state:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.loader:
            yield pair(batch["tokens"])

    def state(self) -> Any:
        return self.loader.state_dict()
