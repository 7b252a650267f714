"""What all objectives share: one Lightning batch is this device's share of one optimizer step.

`training_step` loops over the share's micro-batches itself (manual optimization): Lightning's own accumulation counts
micro-batches, which makes every counter depend on the topology and elastic resume silently wrong. The gradient of a step
is that of the mean over all scored tokens of the global batch. Before each micro-batch torch is seeded from (seed, its
first position), so dropout is a function of the position and there is no random state to save.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.config import AnomalyConfig, OptimConfig, RobustConfig
from sslm.data.module import data_parallel
from sslm.data.stream.order import key64
from sslm.data.stream.recipe import IGNORED, Recipe
from sslm.models.build import on_meta
from sslm.models.head import LanguageModel
from sslm.models.masks import check_documents
from sslm.models.weights import weights_of
from sslm.parallel.materialise import materialise, shallow_model
from sslm.system.collectives import gather_json
from sslm.system.terminal import say
from sslm.training.adversarial import adversarial_losses
from sslm.training.agreement import StepTotals, as_int64
from sslm.training.anomalies import AnomalyDetector
from sslm.training.average import Average
from sslm.training.optim import build_optimizer, clip_gradient, learning_rate
from sslm.training.samples import NUM_SAMPLES, filled_in, written
from sslm.training.token_loss import TokenLoss

Parallelize = Callable[[LanguageModel, PreTrainedModel, DeviceMesh | None], None]


class Objective(LightningModule):
    """A language model in training; works in any Lightning `Trainer`, fed by `DataModule`.

    Args:
        model: a transformers config (weights depend on `seed`, and are made after sharding), or a model to go on with.
        recipe: the objective's settings; default: its defaults.
        optim: optimizer and schedule.
        robust: label smoothing, z-loss, noise on embeddings, adversarial training; default: none of it.
        anomaly: what happens at steps out of the ordinary; default: nothing (to go back takes the callback `Anomalies` too).
        total_steps: optimizer steps in the whole run, which the schedule spans; default: the trainer's max_steps.
        micro_batch_size: sequences per forward pass; default: this device's whole share.
        seed: of initial weights and dropout.
        parallelize: called with (network, model, mesh) to checkpoint, compile and shard; mesh has Lightning's two dimensions
            (data_parallel, tensor_parallel), and is None when not sharded.
        reduce_gradients: when FSDP2 reduces them: once in a step, for which a device holds whole gradients, or after each
            micro-batch.
    """

    auto_class: ClassVar[str]
    """transformers' auto class that loads the trained model."""
    default_model: ClassVar[dict[str, Any]]
    """model_type and keys of a small model that suits the objective."""
    default_lr: ClassVar[float]
    """Peak learning rate of a run that names none."""
    recipe_class: ClassVar[type[Recipe]]
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    """Names of what `correct` tells."""

    @classmethod
    def for_model_type(cls, model_type: str) -> "type[Objective]":
        """The objective as this kind of model does it, where kinds do it in different ways.

        Raises:
            UserError: this kind can't.
        """
        return cls

    @classmethod
    def make_recipe(cls, settings: Mapping[str, Any]) -> Recipe:
        """Raises:
        UserError: a setting that is out of its range.
        """
        return cls.recipe_class(**settings)

    def __init__(
        self,
        model: PreTrainedConfig | PreTrainedModel,
        recipe: Recipe | None = None,
        *,
        optim: OptimConfig | None = None,
        robust: RobustConfig | None = None,
        anomaly: AnomalyConfig | None = None,
        total_steps: int | None = None,
        micro_batch_size: int | None = None,
        seed: int = 0,
        parallelize: Parallelize | None = None,
        reduce_gradients: Literal["step", "micro_batch"] = "step",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.recipe = recipe or self.recipe_class()
        self.optim = optim or OptimConfig()
        if self.optim.lr is None:
            self.optim = replace(self.optim, lr=self.default_lr)
        self.robust = robust or RobustConfig()
        self.anomaly_detector = AnomalyDetector(anomaly or AnomalyConfig(action="off"))
        self.total_steps = total_steps
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.network: LanguageModel = None  # type: ignore[assignment]  # built in configure_model
        self.validation = TokenLoss(num_sources=1)
        self.right = {name: MeanMetric(nan_strategy="ignore") for name in self.metric_names}  # "disable" drops weights
        self.stop_requested = self.save_requested = self.save_failed = False
        """Set on any rank by who wants the run to stop, or a checkpoint, or could not save; all ranks learn of it with the next
        step."""
        self.validated_at: int | None = None
        """The step of the last validation."""
        self.is_updating = False
        """Whether weights and optimizer states are between two steps' values."""
        self._given = [model]  # in a list: not a submodule before it is wrapped
        self._parallelize = parallelize
        self.reduce_gradients = reduce_gradients
        self._grad_norm = torch.zeros(())
        self._step_loss = 0, torch.zeros(())
        """The step's number, and this share's part of its mean loss."""
        self._average: Average | None = None
        self.side_group: dist.ProcessGroup | None = None
        """All ranks, on the CPU (gloo); None with one process."""
        self.batch_ended_at = 0.0
        """When the last batch and all that was done after it (validation, saving) ended, by time.perf_counter."""

    def configure_model(self) -> None:
        if hasattr(self.network, "model"):  # Lightning calls this again for each of fit, validate …
            return
        given, data = self._given[0], getattr(self.trainer, "datamodule", None)
        if isinstance(given, PreTrainedModel):
            model = probe = given
        else:  # its weights come last, to where they belong
            model, probe = on_meta(given, self.auto_class), shallow_model(given, self.auto_class)
        self.check_model(probe)
        if data is not None and data.config.document_mask:
            check_documents(probe)
        model.train()
        self.network = LanguageModel(
            model,
            data.max_scored if data is not None else None,
            label_smoothing=self.robust.label_smoothing,
            z_loss=self.robust.z_loss,
            embedding_noise=self.robust.embedding_noise,
            probe=probe,
        )
        del probe  # it is as large as embeddings and head
        if self._parallelize is not None:
            self._parallelize(self.network, model, self.device_mesh)
        if not isinstance(given, PreTrainedModel):
            materialise(self.network, model, self.auto_class, self.seed, self.trainer.strategy.root_device)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that can't be trained to do this, before it is wrapped and sharded; it may be a stand-in with few layers."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.network, self.optim, self.seed)

    # -------------------------------------------------------------------------------------------- a step

    def setup(self, stage: str) -> None:
        if self.side_group is None and self.trainer.world_size > 1:
            self.side_group = dist.new_group(backend="gloo")
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            self.validation = TokenLoss(len(data.val_stream.sources))

    def wait_for_all(self) -> None:
        """Return when all ranks are here; waits on the CPU."""
        if self.side_group is not None:
            dist.barrier(group=self.side_group)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batch_ended_at = time.perf_counter()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        optimizer: Any = self.optimizers()
        batch, totals = self._agree(batch)
        lr, weight = self.learning_rate, self.data_parallel_size / totals.all_scored
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss_sums = torch.zeros(len(totals.scored), dtype=torch.float32, device=self.device)
        for micro, sources, position, is_last in self._micro_batches(batch):
            row_losses = self._losses(micro, position, is_last, weight)
            loss_sums.index_add_(0, sources, row_losses.float())
        self._step_loss = self.global_step, loss_sums.double().sum() / totals.all_scored
        self.is_updating = True
        optimizer.step()
        self.is_updating = False
        optimizer.zero_grad()
        own = getattr(self.trainer.strategy, "grad_norm", None)
        grad_norm = self._grad_norm if own is None else own()
        if own is not None:
            self._observe(grad_norm)
        if self.average is not None and self.anomaly_detector.last is None:
            self.average.update()
        outputs = {
            "loss_sums": loss_sums,
            "lr": lr,
            "grad_norm": grad_norm,
            "anomaly": self.anomaly_detector.last,
            **totals._asdict(),
        }
        if self.global_step % self.trainer.log_every_n_steps == 0:
            if self.trainer.world_size > 1:
                dist.all_reduce(loss_sums)
                loss_sums /= self.trainer.world_size // self.data_parallel_size
            self.log("train/loss", loss_sums.sum() / totals.all_scored, rank_zero_only=True)
        return outputs

    def _losses(self, micro: dict[str, Tensor], position: int, is_last: bool, weight: float) -> Tensor:
        """[micro-batch] each row's loss, after the backward passes."""

        def backward(loss: Tensor, is_last_pass: bool) -> None:
            with self._synchronised(is_last and is_last_pass):
                self.manual_backward(loss * weight)

        seed = key64(self.seed, "dropout", position)
        if self.robust.adversarial is not None:
            return adversarial_losses(self.network, micro, self.robust, seed, backward)
        torch.manual_seed(seed)
        row_losses: Tensor = self.network(**micro)
        backward(row_losses.sum(), True)
        return row_losses.detach()

    @property
    def data_parallel_size(self) -> int:
        """Shares of the global batch: one for each device, or for those together that share each matrix (tensor parallel)."""
        return data_parallel(self.trainer)[1]

    @property
    def _is_group_leader(self) -> bool:
        """Whether this rank speaks for its share of the batch."""
        return self.device_mesh is None or self.device_mesh["tensor_parallel"].get_local_rank() == 0

    @property
    def learning_rate(self) -> float:
        """The rate of the step to come."""
        return learning_rate(self.global_step, self.total_steps or self.trainer.max_steps, self.optim)

    def _agree(self, batch: dict[str, Any]) -> "tuple[dict[str, Any], StepTotals]":
        """The step's one small collective, on the CPU; and the batch, made again where a rank met a bad shard."""
        bad = batch.get("bad")
        counts = int(self._is_group_leader)
        mine = torch.tensor(
            [
                *(counts * n for n in batch["scored"]),
                counts * as_int64(batch["digest"]),
                int(self.stop_requested),
                int(self.save_requested),
                int(self.save_failed),
                int(bool(bad)),
            ]
        )
        if self.side_group is not None:
            dist.all_reduce(mine, group=self.side_group)
        *scored, digest, stop, save, save_failed, any_bad = mine.tolist()
        if any_bad:
            return self._agree(self._substitute(bad))
        self.save_requested = False
        return batch, StepTotals(scored, digest % (1 << 64), stop > 0, save > 0, save_failed > 0)

    def _substitute(self, bad: list[str] | None) -> dict[str, Any]:
        """Amend the stream from this step on, on all ranks alike; this step's batch, made anew.

        Args:
            bad: (source, file, reason) of the shard that this rank met, if it did.
        """
        data, found = self.trainer.datamodule, gather_json(bad, self.side_group)
        shards = {(source, file): reason for source, file, reason in filter(None, reversed(found))}
        amendments = data.amend(shards, self.global_step, write=self.trainer.is_global_zero)
        self.wait_for_all()  # rank 0 has written them down
        for amendment in amendments:
            say(
                f"Position {amendment.from_position}: {amendment.reason}. From here on another shard is read in its place."
            )
        again: dict[str, Any] = self.trainer.strategy.batch_to_device(data.train_batch(self.global_step), self.device)
        return again

    def _micro_batches(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Tensor], Tensor, int, bool]]:
        """(tensors, sources, first position, whether it is the last), in order of position."""
        tensors, sources = batch["tensors"], batch["sources"]
        rows = len(sources)
        size = self.micro_batch_size or rows
        for start in range(0, rows, size):
            here = slice(start, start + size)
            micro = {name: tensor[here] for name, tensor in tensors.items()}
            yield micro, sources[here], batch["first_position"] + start, start + size >= rows

    def _synchronised(self, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced once a step, with its last micro-batch."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel) and not is_last:
            return wrapped.no_sync()
        if isinstance(self.network, FSDPModule):
            if self.reduce_gradients == "step":
                self.network.set_requires_gradient_sync(is_last)
            else:  # among the devices that share weights after each micro-batch, among replicas once
                self.network.set_requires_all_reduce(is_last)
        return nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, and keep its norm before that; drop it where the step is out of the ordinary. (DeepSpeed's engine clips
        and steps in one go.)"""
        if hasattr(self.trainer.strategy, "grad_norm"):
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves this to fused optimizers, which would do it after clipping
        self._grad_norm = clip_gradient(self.network.parameters(), self.optim.clip_norm or float("inf"))
        self._observe(self._grad_norm)
        if self.anomaly_detector.last is not None:
            optimizer.zero_grad()  # what has no gradient is left as it is, its moments and count of steps too

    # -------------------------------------------------------------------------------------------- anomalies

    def _observe(self, grad_norm: Tensor) -> None:
        """Look for what is out of the ordinary with this step; all ranks see the same numbers. The host waits for the device here."""
        if not self.anomaly_detector.is_on:
            return
        step, mean_loss = self._step_loss
        loss, norm = self._global(mean_loss, grad_norm)
        data, strategy = getattr(self.trainer, "datamodule", None), self.trainer.strategy
        if data is not None and data.begins_stage(step):
            self.anomaly_detector.detector.forget()
        own = getattr(strategy, "loss_scaler", None)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) if own is None else own()
        overflowed = scaler is not None and not math.isfinite(norm) and math.isfinite(loss)
        is_withheld = not hasattr(strategy, "grad_norm")  # DeepSpeed tells the norm when it is too late
        self.anomaly_detector.observe(loss, norm, is_withheld, is_scale_at_fault=overflowed)

    def _global(self, loss: Tensor, grad_norm: Tensor) -> tuple[float, float]:
        """This share's part of the mean loss -> that of the global batch; and the first rank's norm of the gradient."""
        mine = torch.stack([loss if self._is_group_leader else torch.zeros_like(loss), grad_norm.to(loss)]).cpu()
        if self.side_group is None:
            return float(mine[0]), float(mine[1])
        theirs = [torch.empty_like(mine) for _ in range(self.trainer.world_size)]
        dist.all_gather(theirs, mine, group=self.side_group)
        return sum(float(one[0]) for one in theirs), float(theirs[0][1])

    # -------------------------------------------------------------------------------------------- validation

    @property
    def average(self) -> Average | None:
        """Of the weights, from when it is first asked for; None: not wanted."""
        if self._average is None and self.optim.average_decay is not None:
            self._average = Average(weights_of(self.network), self.optim.average_decay)
        return self._average

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.put_in()
            self._forget_gathered()

    def on_validation_end(self) -> None:
        if self.average is not None:
            self.average.take_out()
            self._forget_gathered()

    def _forget_gathered(self) -> None:
        """FSDP keeps the outermost weights together from one forward pass to the next."""
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        for micro, sources, _, _ in self._micro_batches(batch):
            predicted = self.network(**micro, predict=True)
            self.validation.update(predicted.row_losses, (micro["labels"] >= 0).flatten(1).sum(1), sources)
            for name, (right, looked_at) in self.correct(micro, predicted.tokens).items():
                self.right[name].to(self.device).update(right.float(), looked_at.float())

    def correct(self, batch: dict[str, Tensor], predicted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What validation tells of predictions besides their loss: share -> (what is right, what is looked at), booleans.

        Args:
            predicted: [batch, target_len] the likeliest token at each scored place, -100 elsewhere.
        """
        labels = batch["labels"]
        return {"accuracy": (predicted == labels, labels != IGNORED)}

    def loss_metrics(self, loss: Tensor, data: Any) -> dict[str, Tensor]:
        """The held-out loss [nats/token] in other units."""
        return {"perplexity": loss.exp()}

    def on_validation_epoch_end(self) -> None:
        self.validated_at = self.trainer.global_step
        losses, scored = self.validation.compute()
        self.validation.reset()
        loss = losses.nansum() / scored.sum()
        data = getattr(self.trainer, "datamodule", None)
        metrics = {"val/loss": loss} | {f"val/{name}": value for name, value in self.loss_metrics(loss, data).items()}
        for name, metric in self.right.items():
            if metric.update_called and not (share := metric.compute()).isnan():  # nothing was looked at
                metrics[f"val/{name}"] = share
            metric.reset()
        names = [source.name for source in data.val_stream.sources] if data is not None else []
        if len(names) > 1:
            means = zip(names, (losses / scored).tolist(), scored.tolist(), strict=True)
            metrics |= {f"val/loss/{name}": torch.tensor(mean) for name, mean, n in means if n}
        self.log_dict({name: value.float() for name, value in metrics.items()}, rank_zero_only=True)

    @torch.no_grad()
    def samples(self, data: Any) -> list[str]:
        """What the model makes of a few held-out sequences, to print; all ranks call it together.

        Of a model that fills places in: [original>predicted] at each. Of one that writes: what it reads >> what it writes, each
        token predicted from the true ones before it.
        """
        if data.tokenizer is None:
            return []
        rows = {name: tensor.to(self.device) for name, tensor in data.val_rows(NUM_SAMPLES).items()}
        was_training = self.network.training
        self.network.eval()
        predicted = self.network(**rows, predict=True).tokens.tolist()
        self.network.train(was_training)
        tell = written if self.network.model.config.is_encoder_decoder else filled_in
        return tell(rows["input_ids"].tolist(), rows["labels"].tolist(), predicted, data.tokenizer)
