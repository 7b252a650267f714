"""litData: chunks of tokens written by `optimize`, read by its StreamingDataset with a TokensLoader."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

from . import END_OF_TEXT, SEED, Share, batched, documents, join_ranks, pair, text_files

CHUNK_TOKENS = 1 << 20


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    from litdata import optimize

    optimize(
        fn=functools.partial(_tokenise, tokenizer=tokenizer),
        inputs=[str(file) for file in text_files(text)],
        output_dir=str(out),
        chunk_size=CHUNK_TOKENS,
        item_loader=TokensLoader(),
        num_workers=os.cpu_count(),
        start_method="fork",
        verbose=False,
    )


def _tokenise(file: str, tokenizer: Path) -> Iterator[Any]:
    import torch
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = backend.token_to_id(END_OF_TEXT)
    for texts in batched(documents(Path(file))):
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            yield torch.tensor([*encoding.ids, end], dtype=torch.uint16)


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        join_ranks(share)
        dataset = StreamingDataset(
            str(prepared), item_loader=TokensLoader(share.seq_len + 1), shuffle=True, drop_last=True, seed=SEED
        )
        self.loader = StreamingDataLoader(dataset, batch_size=share.rows, drop_last=True, **share.loader_options())
        if state:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from map(pair, self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()
