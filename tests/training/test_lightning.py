"""Reaches into Lightning's loops: what is ours does as Lightning's own does."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from transformers import LlamaConfig

from benchmarks.watch import trainer_callback
from sslm import CausalLM, DataConfig, DataModule
from sslm.training.lightning import NoProfiler, StepLoop, use_step_loop
from tests.support.runs import TrainTiny

SMALL = LlamaConfig(
    vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=None
)


class Witness(Callback):
    """Notes every hook of a batch, and where the loop's counters stand; stops the run in its fifth step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, trainer: Trainer, name: str, *what: Any) -> None:
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        counters = total.ready, total.started, total.processed, total.completed
        self.seen.append((name, trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx, counters, *what))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.note(trainer, "start", batch_idx, batch["first_position"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self.note(trainer, "end", batch_idx, batch["first_position"], float(outputs["loss"]))
        trainer.should_stop = trainer.global_step == 5

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self.note(trainer, "before backward")

    def on_after_backward(self, trainer: Trainer, *_: Any) -> None:
        self.note(trainer, "after backward")

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.note(trainer, "before optimizer step")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, "epoch end")


class Calls(Callback):
    """Counts the Python functions that are called from the second step's end to the third's."""

    num = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        sys.setprofile(self.count if trainer.global_step == 2 else None)

    def count(self, frame: Any, event: str, argument: Any) -> None:
        self.num += event == "call"


def fit(data: DataModule, is_ours: bool, callbacks: list[Callback], **settings: Any) -> None:
    """Train in Lightning's loop, or in ours."""
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        profiler=NoProfiler() if is_ours else None,
        **settings,
    )
    if is_ours:
        use_step_loop(trainer)
    trainer.fit(CausalLM(SMALL, micro_batch_size=32), datamodule=data)


@pytest.fixture
def new_data(text: Path, cache: Path) -> Callable[[], DataModule]:
    """Make a data module with about seven steps an epoch."""
    corpus = DataConfig(
        train=str(text), document_separator="\n-----\n", tokenizer="bpe:512", cache_dir=str(cache), val_sequences=64
    )
    return lambda: DataModule(corpus, CausalLM(SMALL).recipe, seq_len=128, batch_size=64)


@pytest.mark.parametrize("settings", [{"max_steps": 3}, {"max_steps": 8}, {"max_steps": 9, "max_epochs": 2}])
def test_the_step_loop_counts_and_calls_as_lightnings_own(
    new_data: Callable[[], DataModule], settings: dict[str, int]
) -> None:
    ours, lightnings = Witness(), Witness()
    fit(new_data(), True, [ours], **settings)
    fit(new_data(), False, [lightnings], **settings)
    assert ours.seen == lightnings.seen
    assert [name for name, *_ in ours.seen].count("end") == min(settings["max_steps"], 5)


def test_a_step_takes_far_fewer_calls_than_in_lightnings_own_loop(new_data: Callable[[], DataModule]) -> None:
    ours, lightnings = Calls(), Calls()
    others = [type(f"Idle{number}", (Callback,), {})() for number in range(9)]  # as many as a run of sslm train has
    fit(new_data(), True, [*others, ours], max_steps=3)
    fit(new_data(), False, [*others, lightnings], max_steps=3)
    assert 0 < ours.num < 0.75 * lightnings.num


class Parts(Callback):
    """Notes what drives a trainer's batches, and its profiler."""

    loop = profiler = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.loop, self.profiler = type(trainer.fit_loop.epoch_loop), type(trainer.profiler)


def test_sslm_train_runs_the_step_loop_without_a_profiler(train_tiny: TrainTiny, tmp_path: Path) -> None:
    parts = Parts()
    with trainer_callback(parts):
        assert train_tiny(tmp_path / "run", "--max_steps", "1") == 0
    assert (parts.loop, parts.profiler) == (StepLoop, NoProfiler)
