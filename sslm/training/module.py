"""What all objectives share: one Lightning batch is this device's share of one optimizer step.

`training_step` loops over micro-batches itself, so that no counter depends on the topology. The gradient is that of the
mean over all scored tokens of the global batch. Dropout follows from (seed, position): no random state is saved.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.config import AnomalyConfig, OptimConfig, RobustConfig
from sslm.data.module import DataModule
from sslm.data.stream.batches import StepBatch
from sslm.data.stream.recipe import Recipe
from sslm.models.adapters import ADAPTERS_LR, Adapters, adapt
from sslm.models.architecture import check_fits
from sslm.models.attention import BY_OFFSETS, Attention, tried, use
from sslm.models.build import on_meta, shallow_model
from sslm.models.compression.aware import Rounding, round_weights
from sslm.models.document_check import check_documents
from sslm.models.freezing import Frozen, freeze
from sslm.models.linear_head import suits
from sslm.models.network import Network
from sslm.models.sdpa_kernel import tell_kernels
from sslm.models.task import network_for
from sslm.models.weights import weights_of
from sslm.parallel.materialise import materialise
from sslm.system.errors import UserError
from sslm.system.heartbeats import this_process
from sslm.system.random_words import key64
from sslm.system.terminal import say
from sslm.training import layer_decay, mup, saved
from sslm.training.adversarial import adversarial_losses
from sslm.training.agreement import StepTotals, agree, agree_on_bad_shards, agree_on_outcome
from sslm.training.anomalies import Anomaly, AnomalyDetector
from sslm.training.arrival import Arrival
from sslm.training.average import Average, MovingAverage
from sslm.training.distillation.layers import draw_projections
from sslm.training.distillation.teacher import Distillation
from sslm.training.dropout import seed_dropout
from sslm.training.engine import Engine, choose_engine
from sslm.training.evaluated import Evaluated
from sslm.training.lightning import check_settings, scheduler_of
from sslm.training.micro_batches import MicroBatch, check_batch, micro_batches
from sslm.training.optimizers.build import RATES, build_optimizer
from sslm.training.optimizers.by_name import group_of
from sslm.training.optimizers.groups import set_learning_rate
from sslm.training.optimizers.schedule_free import ScheduleFree, ScheduleFreeAverage
from sslm.training.pruning.pruner import Pruner
from sslm.training.pruning.schedule import Schedule
from sslm.training.schedules import learning_rate
from sslm.training.stopping import Stopping

Parallelize = Callable[[Network, PreTrainedModel, DeviceMesh | None], None]


class StepOutputs(TypedDict):
    """What a step leaves for callbacks."""

    loss: Tensor
    """Mean loss in nats of this device's share, a scalar; the mean over devices is that of the global batch."""
    loss_sums: Tensor
    """[sources] summed loss in nats: of this device's share, or at logged steps of the global batch."""
    lr: float
    grad_norm: Tensor
    """Before clipping, a scalar."""
    anomalies: list[Anomaly]
    """Those that became known with this step: its own may be told up to two steps later."""
    num_known: int
    """Steps from the run's beginning whose anomalies are known."""
    totals: StepTotals


class Objective(Evaluated):
    """A language model in training; works in any Lightning `Trainer`, fed by `DataModule`.

    Args:
        model: a transformers config (weights depend on `seed`, and are made after sharding), or a model to go on with.
        recipe: the objective's settings. Default: its defaults.
        optim: optimizer and schedule.
        robust: label smoothing, z-loss, noise on embeddings, adversarial training. Default: none of these.
        anomaly: what happens at anomalous steps. Default: nothing. "rewind" takes the callback `Anomalies` too.
        total_steps: optimizer steps in the whole run, which the schedule spans. Default: those of the data module.
        micro_batch_size: sequences per forward pass. Default: this device's whole share.
        seed: seed of initial weights and dropout.
        parallelize: shards (network, model, mesh [data_parallel, tensor_parallel], or None if it is not sharded).
        reduce_gradients: whether FSDP2 reduces gradients once a step, or after each micro-batch to save memory.
        static_shapes: as in `Evaluated`.
        chunks_loss: whether a language model's loss is computed some places at a time, if its head allows it.
        attention: what computes attention (see `sslm.models.attention`).
        frozen: parts of the model that are not trained. Default: none.
        adapters: low-rank adapters that are trained instead of the model. Default: none.
        rounding: how weights are rounded in forward passes (quantization-aware training). Default: not at all.
        distillation: a teacher whose probabilities are learnt beside the objective. Default: none.
        pruning: when how much of the model is pruned. Default: nothing.
    """

    auto_class: ClassVar[str]
    """transformers' auto class that loads the trained model."""
    default_model: ClassVar[dict[str, Any]]
    """model_type and keys of a small model that suits the objective."""
    default_lr: ClassVar[float]
    """Peak learning rate of a run that names none."""
    recipe_class: ClassVar[type[Recipe]]

    @classmethod
    def for_model_type(cls, model_type: str) -> "type[Objective]":
        """Return the objective as this kind of model does it, or raise UserError if it can't."""
        return cls

    @classmethod
    def model_keys(cls, recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
        """Keys of the model's config that follow from the objective and the labels' names, by number."""
        return {}

    @classmethod
    def make_recipe(cls, settings: Mapping[str, Any]) -> Recipe:
        """Make the recipe from settings by name; raise UserError if one is out of its range."""
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
        static_shapes: bool = False,
        chunks_loss: bool = True,
        attention: Attention = "sdpa",
        frozen: Frozen | None = None,
        adapters: Adapters | None = None,
        rounding: Rounding | None = None,
        distillation: Distillation | None = None,
        pruning: Schedule | None = None,
    ) -> None:
        super().__init__(micro_batch_size, static_shapes)
        self.automatic_optimization = False
        self.recipe = recipe or self.recipe_class()
        self.optim = optim or OptimConfig()
        if self.optim.lr is None:
            lr = self.default_lr if adapters is None else ADAPTERS_LR
            self.optim = replace(self.optim, lr=lr * RATES.get(self.optim.name, 1.0))
        self.robust = robust or RobustConfig()
        self.anomaly_detector = AnomalyDetector(anomaly or AnomalyConfig(action="off"))
        self.total_steps, self.seed, self.frozen, self.adapters = total_steps, seed, frozen, adapters
        self.rounding, self.distillation, self.pruning = rounding, distillation, pruning
        self.stop_requested = self.save_requested = self.save_failed = False
        """A rank's request to stop, to save, or to end because saving failed; all learn of it with the next step."""
        self.settles = False
        """Whether all of the next step must be known when it ends, as for a validation or a checkpoint."""
        self.stopping: Stopping | None = None
        """What may end the run at a validation, or None if nothing does."""
        self.batch_ended_at = 0.0
        """When the last batch and all that was done after it (validation, saving) ended, by time.perf_counter."""
        self.side_group: dist.ProcessGroup | None = None
        """All ranks, on the CPU (gloo); None with one process."""
        self.reduce_gradients, self.chunks_loss, self.attention = reduce_gradients, chunks_loss, attention
        self._parallelize = parallelize
        self._model = [model]  # in a list: it becomes a submodule when it is wrapped
        self._is_configured = False
        self._engine: Engine | None = None
        self._stepping: Any = None
        """Lightning's wrapper of the optimizer, which the engine steps."""
        self._average: Average | None = None
        self._pruner: Pruner | None = None
        self._saved_pruning: dict[str, Tensor] | None = None
        """What was pruned, of Lightning's checkpoint; None: nothing yet."""
        self._saved_average: dict[str, Tensor] | None = None
        """What the average begins as, of Lightning's checkpoint; None: as the weights."""

    # -------------------------------------------------------------------------------------------- before the first step

    def setup(self, stage: str) -> None:
        self._engine = None
        if self.side_group is None and self.trainer.world_size > 1:
            self.side_group = dist.new_group(backend="gloo")

    def configure_model(self) -> None:
        if not self._is_configured:  # Lightning calls this again for each of fit, validate …
            self._configure(self.data, self.trainer.strategy.root_device)

    def build(self, data: DataModule, device: str = "cpu") -> Network:
        """Make the network for a loop of one's own, without a trainer.

        `network(**batch["tensors"])`, of a batch of `data`'s loaders, sums each row's loss in nats; `network.model` is
        transformers' model.
        """
        data.setup()
        self._configure(data, torch.device(device))
        return self.network.to(device)

    def _configure(self, data: DataModule | None, device: torch.device) -> None:
        source = self._model[0]
        if data is not None:
            if data.recipe != self.recipe:
                raise UserError(
                    f"DataModule has {data.recipe}, the objective {self.recipe}; give it the objective's recipe"
                )
            config = source.config if isinstance(source, PreTrainedModel) else source
            check_fits(config, data.vocab_size, data.num_positions)
        dtype = self._matmul_dtype()
        with torch.device("cpu"):  # the probe's, on which the architecture makes tensors, too
            probe = self.checked_model(data is not None and data.config.document_mask)
            self.attention = tried(self.attention, probe, device)
            if data is not None and device.type == "cuda" and self.attention == "sdpa":
                tell_kernels(probe, device, dtype, data.seq_len, data.config.document_mask)
        if data is not None:
            data.lists_documents = self.attention in BY_OFFSETS
        # fresh weights come last, to where they belong
        model = source if isinstance(source, PreTrainedModel) else on_meta(source, self.auto_class)
        network = self.assemble(model, probe, data, device)
        del probe  # it is as large as embeddings and head
        if not isinstance(source, PreTrainedModel):
            materialise(network, model, self.auto_class, self.seed, device)
            if self.optim.mup is not None:
                mup.scale_first_weights(model, self.optim.mup)
        if network.layer_states is not None:
            draw_projections(network.layer_states, self.seed)
        if self.distillation is not None:
            self.distillation.prepare(data, self.device_mesh, device)
        self.network = network  # when it has weights: Lightning's teardown would move it, and hide an error met before
        self._is_configured = True

    def _matmul_dtype(self) -> torch.dtype:
        """Dtype in which the trainer's precision multiplies matrices on a GPU."""
        if self._trainer is None:
            return torch.get_default_dtype()
        with self.trainer.precision_plugin.forward_context():
            autocasts = torch.is_autocast_enabled("cuda")
            return torch.get_autocast_dtype("cuda") if autocasts else torch.get_default_dtype()

    def assemble(
        self, model: PreTrainedModel, probe: PreTrainedModel, data: DataModule | None, device: torch.device
    ) -> Network:
        """Make the network of a model that may lack its weights: masks, adapters, loss, and its shards.

        Args:
            probe: what `checked_model` returned.
        """
        use(self.attention, model)
        model.train()
        if self.adapters is not None:
            adapt(model, self.adapters, self.seed)
        if self.frozen is not None:
            freeze(model, self.frozen)
        if self.rounding is not None:
            round_weights(model, self.rounding)
        network = network_for(
            model,
            data.max_scored if data is not None else None,
            label_smoothing=self.robust.label_smoothing,
            z_loss=self.robust.z_loss,
            embedding_noise=self.robust.embedding_noise,
            probe=probe,
            chunks_loss=self.chunks_loss and suits(probe),
            **self.network_settings(data),
        )
        if self.distillation is not None:
            self.distillation.watch(network, probe)
        if self._parallelize is not None:
            self._parallelize(network, model, self.device_mesh)
        return network

    def checked_model(self, keeps_documents: bool) -> PreTrainedModel:
        """Return the model, or a shallow one like it, that has been tried; UserError if it can't be trained so."""
        source = self._model[0]
        probe = source if isinstance(source, PreTrainedModel) else shallow_model(source, self.auto_class)
        self.check_model(probe)
        if keeps_documents:
            check_documents(probe)
        return probe

    def network_settings(self, data: DataModule | None) -> dict[str, Any]:
        """Settings of the network that follow from objective and data, by name, beside those of every network."""
        return {}

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise UserError if a model can't be trained to do this; it is not sharded, and may have few of its layers."""

    def configure_callbacks(self) -> list[Callback]:
        """Bring none, but refuse settings of the trainer before Lightning does: its words don't say what to do."""
        check_settings(self.trainer, is_sharded=self._parallelize is not None)
        return []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim, model = self.optim, self.network.model
        factors = [] if optim.layer_decay is None else [layer_decay.rates(model, optim.layer_decay)]
        factors += [] if optim.mup is None else [mup.rates(model, optim.mup, optim.name)]
        rates = {p: math.prod(factor[p] for factor in factors) for p in model.parameters()} if factors else None
        own = None if optim.groups is None else group_of(optim.groups, model)
        return build_optimizer(self.network, optim, self.seed, rates, own)

    @property
    def lr(self) -> float:
        """The schedule's peak. Lightning's LearningRateFinder sets it."""
        assert self.optim.lr is not None
        return self.optim.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optim = replace(self.optim, lr=lr)

    @property
    def engine(self) -> Engine:
        """What takes optimizer steps and holds the run's tensors, once the strategy is set up."""
        optimizer: Any = self.optimizers()
        if self._engine is None or optimizer is not self._stepping:  # a LearningRateFinder leaves another wrapper
            how = (self.optim.clip_norm, self.average, self.pruner)
            self._engine = choose_engine(self.trainer, self.network, optimizer, *how)
            self._stepping = optimizer
        return self._engine

    @property
    def average(self) -> Average | None:
        """The weights' average, which begins when this is first asked for; None if it is not wanted."""
        if self._average is None and self.optim.averages:
            self._average = self._make_average()
            if self._saved_average is not None:
                self._average.load(self._saved_average)
        return self._average

    @property
    def is_pruning(self) -> bool:
        """Whether more will be pruned: what is measured now says nothing of the model that is to be."""
        return self.pruning is not None and self.global_step < self.pruning.end

    @property
    def pruner(self) -> Pruner | None:
        """What prunes the network, which begins when this is first asked for; None if nothing is to be pruned."""
        if self._pruner is None and self.pruning is not None:
            self._pruner = Pruner(self.network, self.pruning)
            if self._saved_pruning is not None:
                self._pruner.load(self._saved_pruning)
        return self._pruner

    def _make_average(self) -> Average:
        weights, optimizers = weights_of(self.network), self.trainer.optimizers
        if not optimizers or not isinstance(optimizers[0], ScheduleFree):
            return MovingAverage(weights, self.optim.average_decay or 0.0)
        optimizers[0].make_states()
        return ScheduleFreeAverage(weights, dict(self.network.named_parameters()), optimizers[0])

    @property
    def _is_group_leader(self) -> bool:
        """Whether this rank speaks for its share of the batch."""
        return self.device_mesh is None or self.device_mesh["tensor_parallel"].get_local_rank() == 0

    def wait_for_all(self) -> None:
        """Return when all ranks are here; waits on the CPU."""
        if self.side_group is not None:
            dist.barrier(group=self.side_group)

    # ------------------------------------------------------------------------------- Lightning's own checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `load_from_checkpoint` and a resumed run need to what Lightning's ModelCheckpoint saves."""
        checkpoint[saved.ANOMALY] = self.anomaly_detector.state()
        if self.average is not None:
            checkpoint[saved.AVERAGE] = self.average.tensors
        if self.pruner is not None:
            checkpoint[saved.PRUNING] = self.pruner.tensors()
        checkpoint[saved.KEY] = saved.plain(
            type(self).__name__,
            self.network.model.config,
            self.recipe,
            optim=self.optim,
            robust=self.robust,
            anomaly=self.anomaly_detector.settings,
            total_steps=self.total_steps,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            reduce_gradients=self.reduce_gradients,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what `on_save_checkpoint` added; the average waits until weights are on their device."""
        self._average, self._saved_average = None, checkpoint.get(saved.AVERAGE)
        self._pruner, self._saved_pruning = None, checkpoint.get(saved.PRUNING)
        self.anomaly_detector.load(checkpoint.get(saved.ANOMALY, {}))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *, strict: bool = True, **settings: Any) -> Self:
        """Make the module that Lightning's ModelCheckpoint saved, on the CPU, with its weights and settings.

        Args:
            checkpoint_path: the file; a run's checkpoints are folders, and its model is in its export.
            strict: whether all weights must be there.
            settings: arguments of the objective that are to be others.

        Raises:
            UserError: the file is something else.
        """
        found = saved.read(checkpoint_path)
        objective = cls.for_model_type(found.config.model_type)
        if found.objective != objective.__name__:
            raise UserError(f"{checkpoint_path}: of {found.objective}; type {found.objective}.load_from_checkpoint")
        model = saved.model_of(found, objective.auto_class, strict)
        module = objective(model, objective.recipe_class(**found.recipe), **(found.settings | settings))
        module.network = network_for(model)  # until a trainer configures it
        module._saved_average = found.average
        return module  # type: ignore[return-value]

    # -------------------------------------------------------------------------------------------- a step

    def training_step(self, batch: StepBatch, batch_idx: int) -> StepOutputs:
        check_batch(batch)
        batch, totals = self._agree(batch)
        lr, weight = self._set_learning_rate(), self.data_parallel_size / totals.all_scored
        if self.pruner is not None:
            self.pruner.watch(self.global_step)
        loss_sums = torch.zeros(len(totals.scored), dtype=torch.float32, device=self.device)
        if self.network.pipeline is not None:
            loss_sums.index_add_(0, batch["sources"], self._pipelined_losses(batch, weight).float())
        else:
            for micro in micro_batches(batch, self.micro_batch_size, self.static_shapes):
                loss_sums.index_add_(0, micro.sources, self._losses(micro, weight).float())
        mean_loss, loss = loss_sums.double().sum() / totals.all_scored, loss_sums.sum() * weight
        this_process.turn("updating the weights")
        grad_norm = self.engine.step(self.global_step, partial(self._judge, self.global_step, mean_loss))
        if (scheduler := scheduler_of(self.trainer)) is not None:
            scheduler.step()
        is_logged = self.global_step % (self.trainer.log_every_n_steps or math.inf) == 0
        if self.data is not None and self.device.type == "cuda":
            self.data.make_ahead(self.global_step)  # before the host waits
        anomalies, num_known = self._learn(is_logged or totals.stop or totals.save)
        if is_logged:
            if self.trainer.world_size > 1:
                dist.all_reduce(loss_sums)
                loss_sums /= self.trainer.world_size // self.data_parallel_size
            self.log("train/loss", loss_sums.sum() / totals.all_scored, rank_zero_only=True)
        return StepOutputs(
            loss=loss,
            loss_sums=loss_sums,
            lr=lr,
            grad_norm=grad_norm,
            anomalies=anomalies,
            num_known=num_known,
            totals=totals,
        )

    def _set_learning_rate(self) -> float:
        """Set the schedule's rate, and return it; if the trainer has a scheduler of its own, return that one's."""
        groups = self.trainer.optimizers[0].param_groups
        if scheduler_of(self.trainer) is not None:
            return max(float(group["lr"]) for group in groups)
        lr = learning_rate(self.global_step, self._num_steps, self.optim)
        set_learning_rate(groups, lr)
        return lr

    @property
    def _num_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.total_steps or (self.trainer.max_steps if self.data is None else self.data.num_steps)

    def _agree(self, batch: StepBatch) -> tuple[StepBatch, StepTotals]:
        """Add up what all ranks have; and the batch, made again if a rank met a bad shard."""
        requests = self.stop_requested, self.save_requested, self.save_failed
        totals = agree(batch, *requests, self._is_group_leader, self.side_group)
        if totals.any_bad:
            return self._agree(self._without_bad_shards(batch))
        self.save_requested = False
        return batch, totals

    def _without_bad_shards(self, batch: StepBatch) -> StepBatch:
        data, step, trainer = self.data, self.global_step, self.trainer
        assert data is not None
        for amendment in agree_on_bad_shards(batch.get("bad"), data, step, self.side_group, trainer.is_global_zero):
            where = f"Position {amendment.from_position}: {amendment.reason}"
            say(f"{where}. From here on another shard is read in its place.")
        again: StepBatch = trainer.strategy.batch_to_device(data.train_batch(step), self.device)
        return again

    def _losses(self, micro: MicroBatch, weight: float) -> Tensor:
        """[rows] each row's loss, after the backward passes."""
        engine = self.engine

        def backward(loss: Tensor, is_last_pass: bool) -> None:
            with self._synchronised(micro.is_last and is_last_pass):
                this_process.turn("in the backward pass")
                engine.backward(loss * weight)
                this_process.turn("taking the step")

        if self.pruner is not None:
            self.pruner.begin_pass(micro.tensors)
        seed = key64(self.seed, "dropout", micro.position)
        if self.robust.adversarial is not None:
            return adversarial_losses(self.network, micro.tensors, self.robust, seed, backward)
        seed_dropout(self.device, seed)
        row_losses = self._row_losses(micro.tensors)
        backward(row_losses.sum(), True)
        return row_losses.detach()

    def _row_losses(self, tensors: dict[str, Tensor]) -> Tensor:
        if self.distillation is not None:
            return self.distillation.losses(self.network, tensors)
        losses: Tensor = self.network(**tensors)
        return losses

    def _pipelined_losses(self, batch: StepBatch, weight: float) -> Tensor:
        """[rows] each row's loss, after all backward passes."""
        size = self.micro_batch_size or len(batch["sources"])

        def before(number: int) -> None:
            seed_dropout(self.device, key64(self.seed, "dropout", batch["first_position"] + number * size))

        losses: Tensor = self.network.pipeline.step(batch["tensors"], size, weight, before)
        return losses

    def _synchronised(self, is_last: bool) -> AbstractContextManager[Any]:
        """Within this, gradients are reduced as they should: once a step, with its last micro-batch."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel) and not is_last:
            return wrapped.no_sync()
        if isinstance(self.network, FSDPModule):
            reduce_with(self.network, is_last, self.reduce_gradients)
        return nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.engine.before_update()

    def _judge(self, step: int, mean_loss: Tensor, grad_norm: Tensor) -> Tensor | None:
        """Say on the device whether a step's update is withheld, 1 or 0; None if nobody is to look.

        Args:
            step: counted from 0.
            mean_loss: this share's part.
            grad_norm: of the whole model.
        """
        detector, engine = self.anomaly_detector, self.engine
        if not detector.is_on:
            return None
        detector.can_withhold, detector.scales_loss = engine.can_withhold, engine.loss_scaler is not None
        outcome = agree_on_outcome(mean_loss, grad_norm, self._is_group_leader)
        begins_stage = self.data is not None and self.data.begins_stage(step)
        begins_stage |= self.pruning is not None and self.pruning.jumps(step)
        limits = detector.judge(step, Arrival(outcome), begins_stage)
        loss, norm = outcome.abs().unbind()
        is_usual = (loss <= limits.loss) & (norm <= limits.grad_norm)  # what is not a number is not
        return 1.0 - is_usual.float()

    def _learn(self, of_all: bool) -> tuple[list[Anomaly], int]:
        """Take the news of anomalies, and the number of steps whose outcome is known; the last step's is always."""
        detector, step = self.anomaly_detector, self.global_step
        if of_all or self.settles or step >= self._num_steps:
            detector.learn(before=step)
        self.settles = False
        anomalies, detector.news = detector.news, []
        return anomalies, step - detector.num_unknown

    def on_train_start(self) -> None:
        if self.trainer.loggers:
            self._set_learning_rate()  # for a LearningRateMonitor, which looks before the step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_train_start()
        self.batch_ended_at = time.perf_counter()


def reduce_with(network: FSDPModule, is_last: bool, when: Literal["step", "micro_batch"]) -> None:
    """Let FSDP2 reduce gradients with the next backward pass as `reduce_gradients` says.

    Args:
        is_last: whether it is the step's last.
    """
    if when == "step":
        network.set_requires_gradient_sync(is_last)
    else:  # among the devices that share weights after each micro-batch, among replicas once
        network.set_requires_all_reduce(is_last)
