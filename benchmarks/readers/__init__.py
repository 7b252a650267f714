"""The systems that are compared, one module each, with the same names in all.

    prepare(text, tokenizer, out, seq_len)   folder of .jsonl -> its prepared form; may return the seconds that count
                                             (None instead of a function: the system reads the text)
    Reader(prepared, tokenizer, share, state)
        iter(reader)                         shuffled (input_ids, labels), each int64 [share.rows, share.seq_len], until
                                             the epoch ends; from its beginning, or from where `state` was taken
        reader.state()                       what the system wants saved, after the batches given out so far

Each is used as its documentation says, with the settings that are best for it here: tokens are stored and sent between
processes in 16 bits where the system can do so, and widened in the main process.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
SEED = 1


@dataclass(frozen=True)
class Share:
    """What one process of a training run reads."""

    batch_size: int
    """Sequences of a global batch."""
    seq_len: int
    num_workers: int = 0
    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> int:
        return self.batch_size // self.world

    def loader_options(self) -> dict[str, Any]:
        """Of every torch DataLoader here."""
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}


def text_files(text: Path) -> list[Path]:
    return sorted(text.glob("*.jsonl"))


def documents(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def batched(texts: Iterator[str], chars: int = 1 << 22) -> Iterator[list[str]]:
    """Lists of documents for `encode_batch`, each of about `chars` characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pair(tokens: Any) -> tuple[Any, Any]:
    """[rows, seq_len + 1] token ids of any width -> int64 inputs and labels."""
    tokens = tokens.long()
    return tokens[:, :-1], tokens[:, 1:]


def join_ranks(share: Share) -> None:
    """Make the process group that a training script would have made."""
    import torch.distributed as dist

    if share.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", rank=share.rank, world_size=share.world)
