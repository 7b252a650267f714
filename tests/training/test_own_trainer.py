"""Objectives in another's `Trainer`: what Lightning's users try works, or is one sentence."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from sslm import CausalLM, DataConfig, DataModule, MaskedLM, Monitor, UserError
from sslm.config import DistillConfig, GroupConfig, OptimConfig
from sslm.data.stream.batches import Loader
from sslm.models.build import build
from sslm.training.distillation.teacher import Distillation, LiveTeacher
from tests.support.runs import rows_of

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}
SMALL = LlamaConfig(
    vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=None
)
BAREBONES = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"]
NewData = Callable[..., DataModule]


@pytest.fixture
def new_data(text: Path, cache: Path) -> NewData:
    """Make a data module with ten steps an epoch: new_data(batch_size=64, total_steps=None)."""

    def make(batch_size: int | str = 64, **arguments: Any) -> DataModule:
        config = DataConfig(
            train=str(text), document_separator="\n-----\n", tokenizer="bpe:512", cache_dir=str(cache), val_sequences=64
        )
        return DataModule(config, CausalLM(SMALL).recipe, seq_len=128, batch_size=batch_size, **arguments)

    return make


def fit(
    data: DataModule,
    model: PreTrainedConfig = SMALL,
    ckpt_path: Path | None = None,
    optim: OptimConfig | None = None,
    **settings: Any,
) -> Trainer:
    trainer = Trainer(**{**QUIET, **settings})
    optim = optim or OptimConfig(warmup_steps=2)
    trainer.fit(CausalLM(model, micro_batch_size=32, optim=optim), datamodule=data, ckpt_path=ckpt_path)
    return trainer


class Rates(Monitor):
    """Notes the learning rates."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs)
        self.rates = [*getattr(self, "rates", []), outputs["lr"]]
        self.losses = [*getattr(self, "losses", []), outputs["loss"].item()]
        assert outputs["loss"].item() == pytest.approx(outputs["loss_sums"].sum().item() / outputs["totals"].all_scored)


def test_epochs_read_the_text_so_often_and_the_schedule_spans_them(new_data: NewData, tmp_path: Path) -> None:
    data = new_data()
    monitor = Rates(tmp_path / "new/folder", 100)
    trainer = fit(data, max_epochs=2, callbacks=[monitor], log_every_n_steps=1)
    assert trainer.global_step == 2 * data.epoch_steps == data.num_steps > 10
    assert data.epoch_steps == data.train_stream.num_windows // 64
    steps = [row["step"] for row in rows_of(tmp_path / "new/folder") if "train/loss" in row]
    assert steps == list(range(1, trainer.global_step + 1))
    assert OptimConfig().min_lr_ratio <= monitor.rates[-1] / max(monitor.rates) < 0.2


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 2, "max_steps": 3}, 3),
        ({"max_epochs": 2, "limit_train_batches": 1}, 2),
        ({"max_epochs": 2, "limit_train_batches": 7}, 14),  # of ten: the second epoch goes over the text's end
        ({"max_steps": 2, "barebones": True, **dict.fromkeys(BAREBONES)}, 2),
        ({"max_epochs": -1, "max_steps": 2}, 2),
    ],
)
def test_a_run_ends_where_the_trainer_says_first(settings: dict[str, Any], steps: int, new_data: NewData) -> None:
    data = new_data()
    trainer = fit(data, limit_val_batches=0, **settings)
    assert trainer.global_step == data.num_steps == steps


@pytest.mark.parametrize(
    ("settings", "model", "says"),
    [
        ({"max_steps": -1, "max_epochs": -1}, SMALL, "give max_steps or max_epochs"),
        ({"max_steps": 1, "accumulate_grad_batches": 2}, SMALL, "micro_batch_size"),
        ({"max_steps": 1, "gradient_clip_val": 0.5}, SMALL, r"OptimConfig\(clip_norm=0.5\)"),
        ({"max_steps": 1, "overfit_batches": 2}, SMALL, "none comes again"),
        ({"max_steps": 1, "callbacks": GradientAccumulationScheduler({0: 2})}, SMALL, "micro_batch_size"),
        ({"max_steps": 1, "callbacks": StochasticWeightAveraging(1e-3)}, SMALL, "average_decay"),
        ({"max_steps": 1, "callbacks": EarlyStopping("val/loss"), "limit_val_batches": 0}, SMALL, "never validates"),
        ({"max_steps": 1, "devices": 1, "strategy": ModelParallelStrategy()}, SMALL, "give strategy='ddp'"),
        ({"max_steps": 1}, LlamaConfig(**{**SMALL.to_diff_dict(), "vocab_size": 300}), "the tokenizer has 512 entries"),
        (
            {"max_steps": 1},
            GPT2Config(vocab_size=512, n_positions=64, n_embd=16, n_layer=1, n_head=2),
            "the model has 64 positions",
        ),
    ],
    ids=[
        "endless",
        "accumulation",
        "clipping",
        "overfitting",
        "accumulation later",
        "SWA",
        "nothing validated",
        "not sharded",
        "vocabulary",
        "positions",
    ],
)
def test_what_does_not_go_is_one_sentence(
    settings: dict[str, Any], model: PreTrainedConfig, says: str, new_data: NewData
) -> None:
    with pytest.raises(UserError, match=says):
        fit(new_data(), model, **settings)


def test_predictions_are_left_to_others(new_data: NewData) -> None:
    with pytest.raises(UserError, match="sslm predict"):
        Trainer(**QUIET).predict(CausalLM(SMALL), datamodule=new_data())


def test_an_objective_wants_batches_of_its_own_recipe(new_data: NewData) -> None:
    with pytest.raises(UserError, match="give it the objective's recipe"):
        Trainer(**QUIET, max_steps=1).fit(MaskedLM(BertConfig(vocab_size=600)), datamodule=new_data())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize(
    ("settings", "optim"),
    [
        ({"max_epochs": 2}, OptimConfig(name="muon", warmup_steps=2, average_decay=0.9)),
        ({"max_steps": 4}, OptimConfig(name="schedule_free", warmup_steps=2, groups=[GroupConfig("embed", lr=0.5)])),
    ],
)
def test_a_run_that_goes_on_with_lightnings_checkpoint_is_the_uninterrupted_one(
    settings: dict[str, Any], optim: OptimConfig, new_data: NewData, tmp_path: Path
) -> None:
    """In an epoch's middle and at its end, with dropout and an average of the weights."""
    dropout = LlamaConfig(**SMALL.to_diff_dict() | {"attention_dropout": 0.1})
    settings |= {"log_every_n_steps": 1, "val_check_interval": 2, "enable_checkpointing": True}

    def run(ckpt_path: Path | None = None) -> tuple[Rates, Any, list[float]]:
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        rates = Rates(tmp_path / "run", 100)
        callbacks = [rates, saver]
        trainer = fit(new_data(batch_size=192), dropout, ckpt_path, optim, callbacks=callbacks, **settings)
        return rates, trainer.lightning_module, list(trainer.callback_metrics.values())

    whole, trained, measured = run()
    for step in (1, 3):  # the end of an epoch of 3
        rates, module, now_measured = run(tmp_path / f"step={step}.ckpt")
        assert (rates.losses, rates.rates) == (whole.losses[step:], whole.rates[step:])
        assert all(map(torch.equal, module.state_dict().values(), trained.state_dict().values()))
        assert all(map(torch.equal, module.average.tensors.values(), trained.average.tensors.values()))
        assert now_measured == measured
    saved = tmp_path / f"step={len(whole.losses)}.ckpt"
    [of_file] = Trainer(**QUIET).validate(CausalLM.load_from_checkpoint(saved), datamodule=new_data(), verbose=False)
    [of_run] = Trainer(**QUIET).validate(trained, datamodule=new_data(), verbose=False)
    assert of_file == of_run


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_goes_on_with_its_own_data_alone(new_data: NewData, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="last")
    settings = {"max_steps": 2, "callbacks": [saver], "enable_checkpointing": True, "limit_val_batches": 0}
    fit(new_data(), **settings)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        fit(new_data(seed=1), ckpt_path=tmp_path / "last.ckpt", **settings)
    other = new_data(seed=1)
    Trainer(**QUIET).validate(CausalLM(SMALL), datamodule=other, ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_lightnings_monitor_sees_the_rate_of_each_step(new_data: NewData, tmp_path: Path) -> None:
    rates = Rates(tmp_path / "run", 100)
    callbacks = [LearningRateMonitor("step"), rates]
    logger = CSVLogger(tmp_path)
    fit(new_data(), max_steps=4, callbacks=callbacks, log_every_n_steps=1, logger=logger, limit_val_batches=0)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        seen = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file) if row["lr-AdamW/pg1"]]
    assert seen == rates.rates
    assert len(set(seen)) > 2


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")  # which asks for memory for it
def test_lightnings_average_of_the_weights_is_one(new_data: NewData) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Weights(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            self.on_train_batch_end(trainer, pl_module) if not seen else None

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            seen.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    callbacks = [EMAWeightAveraging(decay=0.5), Weights()]
    trained = fit(new_data(), max_steps=3, callbacks=callbacks, limit_val_batches=0).lightning_module.state_dict()
    for name, tensor in trained.items():
        _, one, two, three = (weights[name] for weights in seen)
        assert torch.allclose(tensor, one / 4 + two / 4 + three / 2, atol=1e-7)


def test_a_trainer_with_loaders_alone_is_told_to_take_the_data_module(new_data: NewData) -> None:
    with pytest.raises(UserError, match="datamodule=DataModule"):
        Trainer(**QUIET).validate(CausalLM(SMALL), new_data().val_dataloader(), verbose=False)


def test_loaders_need_no_trainer(new_data: NewData) -> None:
    data = new_data()
    loader = data.train_dataloader()
    assert len(loader) == data.epoch_steps
    assert next(iter(loader))["tensors"]["input_ids"].shape == (64, 128)
    assert len(new_data(total_steps=3).train_dataloader()) == 3


def test_batches_grow_in_a_trainer_and_in_a_loop_of_ones_own_but_not_by_epochs(
    new_data: NewData, tmp_path: Path
) -> None:
    grows = "32, 64 from 8192 tokens"
    fit(new_data(grows), max_steps=4, callbacks=[Monitor(tmp_path, 4)], log_every_n_steps=1, limit_val_batches=0)
    tokens = [row["tokens"] for row in rows_of(tmp_path)]
    assert tokens == [128 * examples for examples in (32, 64, 128, 192)]
    data = new_data(grows, total_steps=4)
    assert [len(batch["positions"]) for batch in data.train_dataloader()] == [32, 32, 64, 64]
    assert len(data.rows()) == 192
    with pytest.raises(UserError, match="give max_steps or total_steps"):
        fit(new_data(grows), max_epochs=1, limit_val_batches=0)
    with pytest.raises(UserError, match="give max_steps or total_steps"):
        new_data(grows).train_dataloader()


def test_a_loop_without_a_trainer_goes_on_where_its_state_says(new_data: NewData) -> None:
    def positions(data: DataModule, num: int) -> list[int]:
        return [int(batch["positions"][0]) for _, batch in zip(range(num), data.train_dataloader(), strict=False)]

    data = new_data()
    assert positions(data, 4) == positions(data, 4) == [0, 64, 128, 192]  # left in its middle
    state = data.state_dict()
    again = new_data()
    again.load_state_dict(json.loads(json.dumps(state)))
    end = data.epoch_steps * 64
    assert positions(again, 100) == list(range(4 * 64, end, 64))
    assert positions(again, 2) == [end, end + 64]  # the next epoch
    assert again.state_dict()["step"] == data.epoch_steps + 2
    with pytest.raises(UserError, match="first_batch_size was 64, is 32"):
        DataModule(data.config, data.recipe, seq_len=128, batch_size=32).load_state_dict(state)
    larger = DataModule(data.config, data.recipe, seq_len=128, batch_size=128, first_batch_size=64)
    larger.load_state_dict(state)
    assert positions(larger, 9) + positions(larger, 1) == [4 * 64, 6 * 64]


def test_an_epoch_that_was_left_in_its_middle_ends_where_it_would_have(new_data: NewData) -> None:
    data = new_data()
    data.setup()
    steps = data.train_dataloader().steps
    assert [Loader(steps, first, 7).range for first in (0, 3, 7, 9)] == [
        range(7),
        range(3, 7),
        range(7, 14),
        range(9, 14),
    ]


def test_what_model_checkpoint_saves_is_loaded_with_its_settings_and_tested(new_data: NewData, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="last")
    trainer = fit(new_data(), max_steps=2, callbacks=[saver], enable_checkpointing=True)
    trained: Any = trainer.lightning_module
    loaded = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt", seed=5)
    weights = trained.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert (loaded.recipe, loaded.optim, loaded.micro_batch_size, loaded.seed) == (trained.recipe, trained.optim, 32, 5)
    [tested] = Trainer(**QUIET).test(loaded, datamodule=new_data(), verbose=False)
    [validated] = Trainer(**QUIET).validate(trained, datamodule=new_data(), verbose=False)
    assert tested["test/loss"] == validated["val/loss"] < 6.25
    assert list(tested) == [name.replace("val/", "test/") for name in validated]
    for path, says in ((tmp_path, "its export folder"), (tmp_path / "other.ckpt", "not what ModelCheckpoint keeps")):
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=says):
            CausalLM.load_from_checkpoint(path)
    with pytest.raises(UserError, match=r"type CausalLM\.load_from_checkpoint"):
        MaskedLM.load_from_checkpoint(tmp_path / "last.ckpt")


def test_a_student_is_loaded_without_what_it_learnt_by(new_data: NewData, tmp_path: Path) -> None:
    wide = LlamaConfig(**{**SMALL.to_dict(), "hidden_size": 32})
    taught = Distillation(LiveTeacher(build(wide, "AutoModelForCausalLM", 1)), DistillConfig(hidden_weight=1.0))
    student = CausalLM(SMALL, micro_batch_size=32, distillation=taught)
    settings = QUIET | {"max_steps": 1, "enable_checkpointing": True}
    Trainer(**settings, callbacks=[ModelCheckpoint(tmp_path, filename="last")]).fit(student, datamodule=new_data())
    loaded, weights = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt").state_dict(), student.state_dict()
    assert weights.keys() - loaded.keys() == {
        f"network.layer_states.projections.0.{name}.weight" for name in ("embeddings", "blocks")
    }
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())


def test_lightnings_learning_rate_finder_finds_one(
    new_data: NewData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    finder = LearningRateFinder(min_lr=1e-5, num_training_steps=20)
    trainer = fit(new_data(), max_steps=3, callbacks=[finder], limit_val_batches=0)
    module: Any = trainer.lightning_module
    assert trainer.global_step == 3
    assert finder.optimal_lr is not None
    rates = finder.optimal_lr.results["lr"]
    assert rates == sorted(rates)
    assert rates[-1] > 1e4 * rates[0]
    assert module.lr == finder.optimal_lr.suggestion() != module.default_lr
