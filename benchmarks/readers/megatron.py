"""As Megatron-LM does it: one flat file of tokens, a shuffled index, a batch sampler that knows the samples consumed.

Written for this comparison after Megatron's design; its own package needs CUDA.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import END_OF_TEXT, SEED, Share, batched, documents, pair, text_files


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = backend.token_to_id(END_OF_TEXT)
    out.mkdir()
    with open(out / "tokens.bin", "wb") as stream:
        for file in text_files(text):
            for texts in batched(documents(file)):
                for encoding in backend.encode_batch(texts, add_special_tokens=False):
                    stream.write(np.array([*encoding.ids, end], np.uint16).tobytes())


class Samples(Dataset[Any]):
    def __init__(self, file: Path, seq_len: int) -> None:
        self.tokens, self.seq_len = np.memmap(file, np.uint16, "r"), seq_len
        self.order = np.random.default_rng(SEED).permutation((len(self.tokens) - 1) // seq_len)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        start = self.order[index] * self.seq_len
        return torch.from_numpy(self.tokens[start : start + self.seq_len + 1].copy())


class GlobalBatches:
    """This rank's indices of each global batch, from `consumed` samples on."""

    def __init__(self, num_samples: int, share: Share, consumed: int) -> None:
        self.num_samples, self.share, self.consumed = num_samples, share, consumed

    def __iter__(self) -> Iterator[range]:
        size = self.share.batch_size
        for start in range(self.consumed, self.num_samples - size + 1, size):
            first = start + self.share.rank * self.share.rows
            yield range(first, first + self.share.rows)


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        samples = Samples(prepared / "tokens.bin", share.seq_len)
        self.share, self.consumed = share, state["consumed"] if state else 0
        batches: Any = GlobalBatches(len(samples), share, self.consumed)
        self.loader: Any = DataLoader(samples, batch_sampler=batches, **share.loader_options())

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.loader:
            self.consumed += self.share.batch_size
            yield pair(batch)

    def state(self) -> Any:
        return {"consumed": self.consumed}
