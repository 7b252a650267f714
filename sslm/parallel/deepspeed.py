"""ZeRO by DeepSpeed (Rajbhandari et al. 2020, arXiv:1910.02054); no other file knows DeepSpeed.

Lightning's strategy, on CPUs too, with gradients, norms and states as under every other strategy. DeepSpeed's engine
divides gradients by the number of ranks, clips and steps; our losses are weighted so that this gives the mean over
all scored tokens. Checkpoints hold whole fp32 tensors by name: every other strategy goes on from them, and this one
from theirs.
"""

import argparse
import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from sslm.config import Config
from sslm.models.network import Network
from sslm.parallel.launch import Launch
from sslm.runs.checkpoints.optimizer_states import MOMENTS
from sslm.runs.checkpoints.tensors import Tensors, read_tensors
from sslm.system.errors import UserError, one_line

CHUNK_NUMEL = 100_000_000
"""Elements of weights that are read from a checkpoint at a time, by each rank."""


def strategy_and_precision(config: Config, launch: Launch) -> "tuple[DeepSpeed, DeepSpeedCasting]":
    ours, backend = settings(config, launch), "nccl" if launch.device_type == "cuda" else "gloo"
    timeout = timedelta(seconds=config.start_timeout_seconds)
    strategy = DeepSpeed(config=ours, timeout=timeout, logging_level=logging.ERROR, process_group_backend=backend)
    return strategy, DeepSpeedCasting(launch)


LOW_PRECISION: dict[str, Any] = {"bf16-true": "bf16-mixed", "16-mixed": "16-mixed"}
"""Lightning's name of each precision with low-precision weights and fp32 masters; the others have fp32 weights."""

INSTEAD = {
    "optimizer": "--optim.name and its kin",
    "scheduler": "--optim.schedule",
    "gradient_clipping": "--optim.clip_norm",
    "train_batch_size": "--batch_size",
    "train_micro_batch_size_per_gpu": "--micro_batch_size",
    "gradient_accumulation_steps": "--micro_batch_size",
    "managed_gradient_accumulation": "--micro_batch_size",
    "bf16": "--precision",
    "fp16": "--precision",
    "amp": "--precision",
    "torch_autocast": "--precision",
}
"""DeepSpeed's key -> our flag, of what belongs to a run whatever its strategy."""


def settings(config: Config, launch: Launch) -> dict[str, Any]:
    """DeepSpeed's configuration; what the user's file has wins.

    Raises:
        UserError: the file can't be read, has keys that are flags of ours, or settings that DeepSpeed refuses.
    """
    os.environ["DS_ACCELERATOR"] = launch.device_type  # read when DeepSpeed is first imported
    asked, stage = config.deepspeed, launch.traits.zero_stage
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if asked.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if asked.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "managed_gradient_accumulation": False,  # training_step knows which micro-batch is the last
        "gradient_clipping": config.optim.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps in the host's memory as well
    }
    if launch.precision == "bf16-true":
        ours |= {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
    if launch.precision == "16-mixed":
        ours |= {"fp16": {"enabled": True}, "communication_data_type": "fp32"}
    return ours if asked.config is None else merged(ours, read_settings(asked.config, stage))


def read_settings(file: str, stage: int) -> dict[str, Any]:
    """The user's settings; what is "auto" in them is left to us."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def refused(why: str) -> UserError:
        return UserError(f"--deepspeed.config {file}: {why}")

    try:
        theirs = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refused("there is no such file") from None
    except OSError as error:
        raise refused(f"can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise refused(f"is no JSON ({error})") from None
    if not isinstance(theirs, dict) or not isinstance(theirs.get("zero_optimization", {}), dict):
        raise refused('expected an object, as in {"zero_optimization": {"reduce_bucket_size": 1000000}}')
    theirs = without_auto(theirs)
    if taken := INSTEAD.keys() & theirs.keys():
        key = min(taken)
        raise refused(f"{key} is ours to set; leave it out, and give {INSTEAD[key]}")
    zero = theirs.get("zero_optimization", {})
    if zero.get("stage", stage) != stage:
        raise refused(f"has stage {zero['stage']}, --strategy deepspeed_{stage} another; leave one of them out")
    try:
        DeepSpeedZeroConfig(**zero)
    except Exception as error:  # pydantic's, of many kinds
        raise refused(f"DeepSpeed refuses its zero_optimization ({one_line(error)})") from None
    return theirs


def without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != "auto"
    }
    return {key: value for key, value in kept.items() if value != {}}


def merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(ours[key], value) if isinstance(value, dict) and isinstance(ours.get(key), dict) else value
        for key, value in theirs.items()
    }
    return ours | both


class DeepSpeedCasting(DeepSpeedPrecision):
    """Leaves modules and batches as they are: DeepSpeed casts the weights itself, and nothing else is to be cast."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(LOW_PRECISION.get(launch.precision, "32-true"))
        in_bf16 = torch.autocast(launch.device_type, torch.bfloat16, cache_enabled=False)
        self.autocast = in_bf16 if launch.autocasts_to_bf16 else None

    def convert_module(self, module: Any) -> nn.Module:
        """Let the network autocast by itself.

        See docs/lessons.md, "DeepSpeed switches off autocast that stands around it".
        """
        if self.autocast is not None:
            module.network.forward = self.autocast(module.network.forward)
        return module  # type: ignore[no-any-return]

    def convert_input(self, data: Any) -> Any:
        return data

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy, with what that lacks: CPUs, and an engine whose states other strategies can read."""

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)  # Lightning's own refuses CPUs

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Do nothing: Lightning would shard each module's weights when they are made, before they are initialised."""
        yield

    def _init_deepspeed_distributed(self) -> None:
        import deepspeed

        for talkative in ("DeepSpeed", "lightning.pytorch.strategies.deepspeed"):
            logging.getLogger(talkative).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # it calls old names
        # on CPUs it would compile C++ for its own collectives, and all later runs would wait if it is killed meanwhile
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super()._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, lr_scheduler: Any = None
    ) -> Any:
        import deepspeed

        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        engine, zero, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            dist_init_required=False,
        )
        for name, buffer in buffers.items():  # rotary frequencies stay in fp32
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, buffer.to(self.root_device))
        make_moments(zero)
        return engine, zero

    def backward(self, *arguments: Any, **named: Any) -> Tensor:
        """Run one of a step's backward passes; DeepSpeed expects a forward pass of its engine before each."""
        self.optimizers[0].clear_backward_seen_flag()  # type: ignore[attr-defined]
        return super().backward(*arguments, **named)

    def engine(self, network: Network, optimizer: LightningOptimizer) -> "DeepSpeedEngine":
        """What takes this strategy's steps, once it is set up."""
        return DeepSpeedEngine(self, network, optimizer)


class DeepSpeedEngine:
    """DeepSpeed's step: it clips and updates in one go, so the gradient norm comes too late to withhold an update."""

    can_withhold = False
    is_updating = False

    def __init__(self, strategy: DeepSpeed, network: Network, optimizer: LightningOptimizer) -> None:
        zero: Any = strategy.optimizers[0]
        self.strategy = strategy
        self.engine: Any = strategy.model
        self.optimizer, self.states = optimizer, DeepSpeedStates(network, zero, strategy.root_device)
        self.loss_scaler = DeepSpeedLossScale(zero.loss_scaler) if zero.loss_scaler.dynamic else None

    def backward(self, loss: Tensor) -> None:
        self.strategy.backward(loss, None)

    def step(self, number: int, judge: Callable[[Tensor], Tensor | None]) -> Tensor:
        self.is_updating = True
        self.optimizer.step()
        self.is_updating = False
        self.optimizer.zero_grad()
        norm = torch.as_tensor(self.engine.get_global_grad_norm())
        judge(norm)
        return norm

    def before_update(self) -> None:
        """Do nothing: DeepSpeed clips by itself."""


class DeepSpeedLossScale:
    """DeepSpeed's loss scale, with the state of torch's GradScaler: each goes on from the other's."""

    def __init__(self, scaler: Any) -> None:
        self.scaler = scaler

    def state_dict(self) -> dict[str, float]:
        stable = max(self.scaler.cur_iter - self.scaler.last_overflow_iter - 1, 0)
        return {"scale": float(self.scaler.cur_scale), "_growth_tracker": stable}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scaler.cur_scale, self.scaler.last_overflow_iter = state["scale"], -1
        self.scaler.cur_iter = int(state["_growth_tracker"])


class DeepSpeedStates:
    """Weights and optimizer states in the form in which other strategies have them: whole fp32 tensors by name."""

    def __init__(self, network: Network, zero: Any, device: torch.device) -> None:
        self.network, self.zero, self.device = network, zero, device

    def tensors(self) -> Tensors:
        """This rank's share, in the host's memory: each parameter belongs to one rank. All ranks ask together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        mine: Tensors = self._buffers()
        for number, (name, parameter) in enumerate(self.network.named_parameters()):
            whole = {f"model.{name}": whole_weight(parameter)}
            moments = MOMENTS if parameter.requires_grad else ()
            whole |= {f"optim.state.{name}.{m}": safe_get_full_optimizer_state(parameter, m) for m in moments}
            if number % dist.get_world_size() == dist.get_rank():
                mine |= {key: tensor.to("cpu", copy=True) for key, tensor in whole.items()}
                if moments:
                    mine[f"optim.state.{name}.step"] = self._steps()[0].to("cpu", torch.float32, copy=True)
        return mine

    def weights(self, keeps: bool) -> dict[str, torch.Tensor]:
        """Gather the model's weights, as `States.weights` does."""
        found = self._buffers() if keeps else {}
        for name, parameter in self.network.named_parameters():
            whole = whole_weight(parameter)
            if keeps:
                found[f"model.{name}"] = whole.to("cpu", copy=True)
        return {name.removeprefix("model.model."): tensor for name, tensor in found.items()}

    def load(self, checkpoint: Path) -> None:
        """Read a checkpoint in place, some parameters at a time; all ranks call it together."""
        for names in chunks(self.network, CHUNK_NUMEL):
            tensors: Tensors = {}
            targets: dict[str, tuple[Any, str | None]] = {}
            for name in names:
                parameter: Any = self.network.get_parameter(name)
                moments = MOMENTS if parameter.requires_grad else ()
                of_it = {f"model.{name}": None} | {f"optim.state.{name}.{moment}": moment for moment in moments}
                targets |= {key: (parameter, state) for key, state in of_it.items()}
                tensors |= {key: torch.empty(getattr(parameter, "ds_shape", parameter.shape)) for key in of_it}
            read_tensors(checkpoint, tensors)
            for key, (parameter, state) in targets.items():
                self._set(parameter, tensors[key], state)
        trained = next(name for name, parameter in self.network.named_parameters() if parameter.requires_grad)
        buffers, step = self._buffers(), {f"optim.state.{trained}.step": torch.empty(())}
        read_tensors(checkpoint, buffers | step)
        for name, value in buffers.items():
            self.network.get_buffer(name.removeprefix("model.")).copy_(value)
        for counter in self._steps():
            counter.copy_(next(iter(step.values())))

    def _buffers(self) -> Tensors:
        """Those that are saved, as BART's bias of the logits."""
        names = dict(self.network.named_buffers()).keys() & self.network.state_dict().keys()
        return {f"model.{name}": self.network.get_buffer(name).to("cpu", copy=True) for name in sorted(names)}

    def _set(self, parameter: Any, value: Tensor, state: str | None) -> None:
        if hasattr(parameter, "ds_id"):  # stage 3: this rank's part of it, the last filled up with zeros
            size, rank = parameter.ds_tensor.numel(), dist.get_rank()
            padding = size * dist.get_world_size() - value.numel()
            part = nn.functional.pad(value.flatten(), (0, padding))[rank * size : (rank + 1) * size]
            self.zero.set_local_hp_param(part.to(self.device), parameter, state)  # of what is not trained it has none
            if state is None:
                parameter.ds_tensor.data.copy_(part)
            return
        if getattr(parameter, "_hp_mapping", None) is not None:
            parameter.set_full_hp_param(value.to(self.device), state)
        if state is None:
            parameter.data.copy_(value)

    def _steps(self) -> list[Tensor]:
        return [state["step"] for state in self.zero.optimizer.state.values()]


def whole_weight(parameter: nn.Parameter) -> Tensor:
    """Gather a weight in fp32; one that is not trained has no master, and is as the model has it. All ranks ask."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]
    with zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().clone()


def make_moments(zero: Any) -> None:
    """Make AdamW's moments before its first step.

    See docs/lessons.md, "Moments of the second parameter group are never linked".
    """
    stage_3 = getattr(zero, "fp32_partitioned_groups_flat", None)
    for flat in zero.single_partition_of_fp32_groups if stage_3 is None else stage_3:
        step = torch.zeros((), device=flat.device)  # fused kernels read it there
        zero.optimizer.state[flat] = {"step": step} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    if stage_3 is None:
        zero._lazy_init_hp_params_optimizer_state()


def chunks(network: nn.Module, numel: int) -> Iterator[list[str]]:
    """Names of parameters, so many at a time that they have at most `numel` elements (or are one)."""
    names: list[str] = []
    total = 0
    for name, parameter in network.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())
        if names and total + size > numel:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names
