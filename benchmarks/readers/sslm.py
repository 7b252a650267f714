"""sslm: its streams and loader, in a loop without Lightning. The state is the number of steps taken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslm.config import DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.data.stream.batches import Loader, TrainSteps
from sslm.data.stream.recipe import IGNORED, Arrays, Examples, Recipe
from sslm.data.stream.streams import open_streams

from . import SEED, Share


class NextToken(Recipe):
    """What the causal objective does; that one lives beside its Lightning module, which no other row imports either."""

    keeps_documents = True

    def window_len(self, seq_len: int, vocabulary: None) -> int:
        return seq_len + 1

    def stride(self, seq_len: int, vocabulary: None) -> int:
        return seq_len

    def make_batch(self, examples: Examples, vocabulary: None, seed: int) -> Arrays:
        inputs, labels, documents = examples.tokens[:, :-1], examples.tokens[:, 1:], examples.documents
        if documents is None:
            return {"input_ids": inputs, "labels": labels}
        labels = np.where(documents[:, 1:] == documents[:, :-1], labels, IGNORED)
        return {"input_ids": inputs, "labels": labels, "segment_ids": documents[:, :-1]}


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    from sslm.cli.prepare import main

    if main([str(text), "--out", str(out), "--tokenizer", str(tokenizer)]):
        raise RuntimeError("sslm prepare failed")


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        config, recipe = self.config(prepared), NextToken()
        stream = open_streams(config, recipe, seq_len=share.seq_len, batch_size=share.batch_size, seed=SEED).train
        self.steps = TrainSteps(stream, recipe, BatchSizes.even(share.batch_size), SEED, share.rank, share.world)
        self.num_steps, self.num_workers = stream.num_windows // share.batch_size, share.num_workers
        self.step = state["step"] if state else 0

    def config(self, prepared: Path) -> DataConfig:
        return DataConfig(train=str(prepared))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in Loader(self.steps, self.step, self.num_steps, self.num_workers):
            self.step += 1
            yield batch["tensors"]["input_ids"], batch["tensors"]["labels"]
        self.step = 0

    def state(self) -> Any:
        return {"step": self.step}
