"""A language model measured on held-out sequences, in any Lightning Trainer: `validate`, `test`, and within `fit`."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sslm.data.module import DataModule, data_parallel
from sslm.data.stream.batches import StepBatch
from sslm.data.stream.recipe import IGNORED
from sslm.models.blocks import evaluating
from sslm.models.network import Network
from sslm.training.average import Average
from sslm.training.lightning import data_of
from sslm.training.micro_batches import check_batch, micro_batches
from sslm.training.samples import FILLED_IN, NUM_SAMPLES, WRITTEN, filled_in, written
from sslm.training.scores import Scores
from sslm.training.validation import ValidationMetrics
from sslm.training.window_scores import WindowScores


class Evaluated(LightningModule):
    """What is measured of a language model, and how.

    Args:
        micro_batch_size: sequences per forward pass. Default: this device's whole share of a batch.
        static_shapes: whether all of them have the same shape, as compiled blocks need; else padding is cut off.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    """Names of the shares that `correct` tells."""

    def __init__(self, micro_batch_size: int | None, static_shapes: bool = False) -> None:
        super().__init__()
        self.micro_batch_size, self.static_shapes = micro_batch_size, static_shapes
        self.network: Network = None  # type: ignore[assignment]  # built in configure_model
        self.validated_at: int | None = None
        """The step of the last validation."""
        self.measured: dict[str, float] = {}
        """What the last validation came to, by name, on every rank."""

    @property
    def data(self) -> DataModule | None:
        """The trainer's data module, or None if it was given loaders."""
        return data_of(self.trainer)

    @property
    def data_parallel_size(self) -> int:
        """Number of shares of the global batch; a tensor-parallel group of devices has one together."""
        return data_parallel(self.trainer)[1]

    @property
    def average(self) -> Average | None:
        """The weights' average, which is what is measured; None: the weights are."""
        return None

    def on_validation_start(self) -> None:
        sources = [] if self.data is None else [source.name for source in self.data.held_out.stream.sources]
        self._metrics = ValidationMetrics(sources, self.metric_names, self.device, self.scores())
        if self.average is not None:
            self.average.put_in(self.network)

    def on_validation_end(self) -> None:
        if self.average is not None:
            self.average.take_out(self.network)

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        check_batch(batch)
        for micro in micro_batches(batch, self.micro_batch_size, self.static_shapes):
            predicted = self.network(**micro.tensors, predict=True)
            correct = self.correct(micro.tensors, predicted.tokens)
            self._metrics.update(predicted, micro.tensors["labels"], micro.sources, correct, micro.position)

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Which predictions are right, and where they count: name of a metric -> (right, looked at), booleans.

        Args:
            batch: tensors as the network takes them.
            predicted: [batch, target_len] the likeliest token at each scored place, -100 elsewhere.
        """
        labels = batch["labels"]
        return {"accuracy": (predicted == labels, labels != IGNORED)}

    def scores(self) -> Scores | WindowScores | None:
        """Begin to count a task's scores; None if the objective has none."""
        return None

    def loss_metrics(self, loss: Tensor, data: Any) -> dict[str, Tensor]:
        """The held-out loss [nats/token] in other units, by name."""
        return {"perplexity": loss.exp()}

    def on_validation_epoch_end(self) -> None:
        self.validated_at = self.trainer.global_step
        self._log_metrics("val")

    def _log_metrics(self, stage: str) -> None:
        metrics = self._metrics.compute()
        loss = metrics.pop("loss")
        metrics = {"loss": loss, **self.loss_metrics(loss, self.data), **metrics}
        self.measured = {f"{stage}/{name}": float(value) for name, value in metrics.items()}
        self.log_dict(self.measured, rank_zero_only=True)

    def on_test_start(self) -> None:
        self.on_validation_start()

    def test_step(self, batch: StepBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_test_end(self) -> None:
        self.on_validation_end()

    @property
    def samples_in_words(self) -> str:
        """How to read `samples`."""
        return WRITTEN if self.network.model.config.is_encoder_decoder else FILLED_IN

    @torch.no_grad()
    def samples(self, data: Any) -> list[str]:
        """Lines with predictions for a few held-out sequences (see `samples`); all ranks call it together."""
        if data.tokenizer is None:
            return []
        size = self.micro_batch_size or data.val_batch_size // self.data_parallel_size
        num_rows = -(-NUM_SAMPLES // size) * size  # in validation's shape, which blocks are compiled for
        held_out = data.held_out.rows(num_rows)
        parts = zip(*(tensor.to(self.device).split(size) for tensor in held_out.values()), strict=True)
        with evaluating(self.network), self.trainer.precision_plugin.val_step_context():
            predicted = [self.network(**dict(zip(held_out, part, strict=True)), predict=True).tokens for part in parts]
        show = written if self.network.model.config.is_encoder_decoder else filled_in
        ids, labels = (held_out[name][:NUM_SAMPLES].tolist() for name in ("input_ids", "labels"))
        return show(ids, labels, torch.cat(predicted)[:NUM_SAMPLES].tolist(), data.tokenizer)
