"""From a strategy's and a precision's name to Lightning's classes."""

import os
from dataclasses import fields
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from sslm.config import FSDP_STRATEGIES, Config
from sslm.models.blocks import blocks
from sslm.parallel.float8 import suits_float8
from sslm.parallel.launch import Launch
from sslm.parallel.tensor_parallel import check_tensor_parallel
from sslm.system.errors import UserError
from sslm.system.ranks import under_srun, under_torchrun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        raise UserError(
            f"--precision fp8: {model.config.model_type} has no linear layers in its blocks whose sides are multiples of 16; give "
            f"--precision bf16-mixed"
        )


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
        from sslm.parallel.deepspeed import settings

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
        from sslm.parallel import deepspeed

        return deepspeed.strategy_and_precision(config, launch)
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
        data_parallel_size=launch.world // launch.tensor_parallel_size,
        tensor_parallel_size=launch.tensor_parallel_size,
        process_group_backend=backend,
        timeout=timeout,
    ), plugin


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


def trainer_settings(config: Config, launch: "Launch") -> dict[str, Any]:
    """The Trainer's accelerator, devices, num_nodes, strategy and plugins (precision, cluster)."""
    strategy, precision = strategy_and_precision(config, launch)
    return {
        "accelerator": launch.accelerator,
        "devices": launch.devices,
        "num_nodes": launch.num_nodes,
        "strategy": strategy,
        "plugins": [precision, *_cluster()],
    }


def _cluster() -> list[Any]:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from sslm.parallel.launchers import Slurm

    if under_torchrun() or "SLURM_NTASKS" not in os.environ:
        return []  # Lightning sees by itself which it is
    return [Slurm() if under_srun() else LightningEnvironment()]
