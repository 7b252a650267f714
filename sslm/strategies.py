"""From a strategy's and a precision's name to Lightning's classes."""

from dataclasses import dataclass, fields
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from sslm.config import FSDP_STRATEGIES, Config
from sslm.errors import UserError
from sslm.models.float8 import suits_float8
from sslm.models.parallelize import blocks
from sslm.models.tensor_parallel import check_tensor_parallel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Launch:
    """What a run is launched on, and how: `auto` is settled."""

    accelerator: str
    """cpu or gpu."""
    devices: int
    """Devices per node."""
    num_nodes: int
    strategy: str
    precision: str
    replicas: int = 1
    """hsdp: groups of devices that hold all of the weights among them."""
    tensor_parallel_size: int = 1
    """Devices that share each matrix."""

    @property
    def world(self) -> int:
        return self.devices * self.num_nodes

    @property
    def shares(self) -> int:
        """Of the global batch: one for each device, or for those together that share each matrix."""
        return max(self.world // self.tensor_parallel_size, 1)

    @property
    def device_type(self) -> str:
        """As torch calls it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's; 0: another strategy."""
        return int(self.strategy[-1]) if self.strategy.startswith("deepspeed") else 0

    @property
    def autocasts_to_bf16(self) -> bool:
        return self.precision in ("bf16-mixed", "fp8")

    @property
    def holds_bf16(self) -> bool:
        """Whether weights are in bf16 and nowhere else (DeepSpeed keeps fp32 copies)."""
        return self.precision == "bf16-true" and not self.zero_stage


def check_strategy(config: Config, launch: Launch, model: "PreTrainedModel") -> None:
    """Refuse what can't run, before any process is started.

    Raises:
        UserError: what, and what would.
    """
    name, world = launch.strategy, launch.world
    if name == "single" and world > 1:
        raise UserError(
            f"--strategy single: runs on one device, got {world}; give --strategy ddp or fsdp, or --devices 1"
        )
    if launch.zero_stage:
        _check_deepspeed(config, launch)
    if launch.precision == "16-mixed" and name in (*FSDP_STRATEGIES, "tp"):
        raise UserError(
            f"--precision 16-mixed: has no loss scaling under --strategy {name}; give --precision bf16-mixed"
        )
    if launch.precision == "fp8":
        _check_float8(name, model)
    if name in FSDP_STRATEGIES and not blocks(model):
        raise UserError(
            f"--strategy {name}: {model.config.model_type}'s layers can't be told apart; give --strategy ddp"
        )
    if name == "hsdp" and (launch.replicas == 1 or world % launch.replicas):
        divisor = f"give --fsdp.replicas a divisor of {world} above 1, or " if world > 1 else "give "
        raise UserError(f"--strategy hsdp: {launch.replicas} replicas of {world} devices; {divisor}--strategy fsdp")
    if name in ("tp", "fsdp_tp"):
        size = launch.tensor_parallel_size
        if world % size or (name == "tp" and size != world):
            which = f"{world}, or --strategy fsdp_tp" if name == "tp" else "a divisor of that"
            raise UserError(f"--tensor_parallel_size {size}: does not fit {world} devices; give {which}")
        check_tensor_parallel(model, size)
        if config.compile and size > 1:
            raise UserError(f"--compile: not under --strategy {name}; leave it out, or give --strategy fsdp")
    elif config.tensor_parallel_size is not None:
        raise UserError(
            f"--tensor_parallel_size {config.tensor_parallel_size}: belongs to --strategy tp and fsdp_tp, this is {name}"
        )


def _check_float8(name: str, model: "PreTrainedModel") -> None:
    if name in ("tp", "fsdp_tp"):
        raise UserError(
            f"--precision fp8: not under --strategy {name}; give --strategy fsdp, or --precision bf16-mixed"
        )
    if not any(suits_float8(module) for block in blocks(model) for module in block.modules()):
        raise UserError(f"--precision fp8: {model.config.model_type} has no linear layers in its blocks whose sides are multiples of 16; give "
                        f"--precision bf16-mixed")  # fmt: skip


def _check_deepspeed(config: Config, launch: Launch) -> None:
    name = launch.strategy
    if find_spec("deepspeed") is None:
        raise UserError(f"--strategy {name}: DeepSpeed is not installed; pip install 'sslm[deepspeed]'")
    if config.optim.average_decay is not None:
        raise UserError(f"--optim.average_decay: not under --strategy {name}; leave it out, or give --strategy fsdp")
    if launch.precision == "16-mixed" and launch.accelerator != "gpu":
        raise UserError(
            "--precision 16-mixed: DeepSpeed has it on GPUs alone; give --precision bf16-mixed, or --strategy ddp"
        )
    if config.deepspeed.offload_parameters and name != "deepspeed_3":
        raise UserError(
            f"--deepspeed.offload_parameters: {name} keeps all weights on each device; give --strategy deepspeed_3"
        )
    if config.deepspeed.config is not None:
        from sslm.zero import settings

        settings(config, launch)


def without_effect(config: Config, strategy: str) -> list[str]:
    """Flags that were given and that this strategy knows nothing of."""
    defaults = Config()
    foreign = ["fsdp"] if strategy not in FSDP_STRATEGIES else []
    foreign += ["deepspeed"] if not strategy.startswith("deepspeed") else []
    flags = [
        f"--{section}.{field.name}"
        for section in foreign
        for field in fields(getattr(config, section))
        if getattr(getattr(config, section), field.name) != getattr(getattr(defaults, section), field.name)
    ]
    has_replicas = config.fsdp.replicas is not None and strategy in FSDP_STRATEGIES and strategy != "hsdp"
    return [*flags, *(["--fsdp.replicas"] if has_replicas else [])]


def strategy_and_precision(config: Config, launch: Launch) -> tuple[Strategy, Precision]:
    """Lightning's strategy, and its plugin for the precision.

    Weights in bf16 and fp8 matmuls are no business of Lightning's: `parallelize` makes them.
    """
    kind, name, precision = launch.device_type, launch.strategy, launch.precision
    if launch.zero_stage:
        from sslm import zero

        return zero.strategy_and_precision(config, launch)
    plugin = Precision()
    if launch.autocasts_to_bf16 or precision == "16-mixed":
        plugin = MixedPrecision("16-mixed" if precision == "16-mixed" else "bf16-mixed", device=kind)
    if name == "single":
        return SingleDeviceStrategy(device="cuda:0" if kind == "cuda" else "cpu"), plugin
    backend, timeout = "nccl" if kind == "cuda" else "gloo", timedelta(seconds=config.start_timeout_seconds)
    if name == "ddp":
        return Replicated(
            process_group_backend=backend, timeout=timeout, broadcast_buffers=False, gradient_as_bucket_view=True
        ), plugin
    return ModelParallelStrategy(
        data_parallel_size=launch.world // launch.tensor_parallel_size, tensor_parallel_size=launch.tensor_parallel_size,
        process_group_backend=backend, timeout=timeout,
    ), plugin  # fmt: skip


class Replicated(DDPStrategy):
    """DDP that sums gradients in fp32, whatever the weights are in."""

    def configure_ddp(self) -> None:
        super().configure_ddp()
        model: Any = self.model
        if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
            model.register_comm_hook(None, mean_in_fp32)


def mean_in_fp32(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's communication hook."""
    gradient = bucket.buffer()
    wide = gradient.float() / dist.get_world_size()
    summed: Any = dist.all_reduce(wide, async_op=True).get_future()
    mean: torch.futures.Future[Tensor] = summed.then(lambda done: gradient.copy_(done.value()[0]))
    return mean
