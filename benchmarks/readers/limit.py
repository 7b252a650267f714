"""What nobody can beat: `encode_batch` alone, and widening a file's tokens from beginning to end, without order."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import Share, batched, documents, pair, text_files


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> float:
    """The tokenizer on all cores, reading not counted, results thrown away; how many seconds it took."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    seconds = 0.0
    for file in text_files(text):
        for texts in batched(documents(file)):
            start = time.perf_counter()
            backend.encode_batch(texts, add_special_tokens=False)
            seconds += time.perf_counter() - start
    return seconds


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        self.tokens, self.share = np.memmap(prepared / "tokens.bin", np.uint16, "r"), share

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rows, length = self.share.rows, self.share.seq_len + 1
        for start in range(0, len(self.tokens) - rows * length + 1, rows * length):
            flat = self.tokens[start : start + rows * length].astype(np.int64)
            yield pair(torch.from_numpy(flat.reshape(rows, length)))

    def state(self) -> Any:
        return None
