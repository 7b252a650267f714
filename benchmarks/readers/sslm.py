"""sslm: the DataModule that training uses. Its state is the number of steps taken."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sslm.config import DataConfig
from sslm.data.module import DataModule
from sslm.objectives.causal_lm import CausalLMRecipe

from . import SEED, Share


def prepare(text: Path, tokenizer: Path, out: Path, seq_len: int) -> None:
    from sslm.prepare import main

    if main([str(text), "--out", str(out), "--tokenizer", str(tokenizer)]):
        raise RuntimeError("sslm prepare failed")


class Reader:
    def __init__(self, prepared: Path, tokenizer: Path, share: Share, state: Any) -> None:
        config = DataConfig(train=str(prepared), num_workers=share.num_workers)
        data = DataModule(config, CausalLMRecipe(), seq_len=share.seq_len, batch_size=share.batch_size, seed=SEED)
        data.setup()
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=share.rank, world_size=share.world, max_steps=data.train_stream.num_windows // share.batch_size
        )
        data.first_step = self.step = state["step"] if state else 0
        self.data = data

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.data.train_dataloader():
            self.step += 1
            yield batch["tensors"]["input_ids"], batch["tensors"]["labels"]
        self.data.first_step = self.step = 0

    def state(self) -> Any:
        return {"step": self.step}
