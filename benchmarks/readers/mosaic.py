"""Mosaic streaming: MDS shards written by one process per core, read by its StreamingDataset."""

import functools
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# images are no part of this, and torchvision, which they need, is not there for every build of torch
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")

from streaming import StreamingDataLoader, StreamingDataset  # noqa: E402

from . import END_OF_TEXT, SEED, Share, batched, documents, join_ranks, pair, text_files  # noqa: E402


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    from concurrent.futures import ProcessPoolExecutor

    from streaming.base.util import merge_index

    write = functools.partial(_write, tokenizer=tokenizer, out=out, length=seq_len + 1)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, text_files(text)))
    merge_index(str(out), keep_local=True)


def _write(file: Path, tokenizer: Path, out: Path, length: int) -> None:
    import numpy as np
    from streaming import MDSWriter
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = backend.token_to_id(END_OF_TEXT)
    rest = np.empty(0, np.uint16)
    with MDSWriter(out=str(out / file.stem), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
        for texts in batched(documents(file)):
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            tokens = np.concatenate([rest, *(np.array([*e.ids, end], np.uint16) for e in encodings)])
            num_rows = len(tokens) // length
            for row in tokens[: num_rows * length].reshape(num_rows, length):
                writer.write({"tokens": row})
            rest = tokens[num_rows * length :]


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        join_ranks(share)
        dataset = StreamingDataset(local=str(prepared), shuffle=True, shuffle_seed=SEED, batch_size=share.rows)
        self.loader = StreamingDataLoader(
            dataset, batch_size=share.rows, drop_last=True, collate_fn=_stack, **share.loader_options()
        )
        if state:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from map(pair, self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


def _stack(rows: list[dict[str, Any]]) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([row["tokens"] for row in rows]))
