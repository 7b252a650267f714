"""A launch as Lightning's classes, and which launches can't run."""

import os
from dataclasses import fields
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor
from transformers import PreTrainedModel

from sslm.config import Config
from sslm.models.blocks import blocks
from sslm.parallel.float8 import suits_float8
from sslm.parallel.launch import STRATEGIES, Launch
from sslm.parallel.launchers import Slurm
from sslm.parallel.tensor_parallel import check_tensor_parallel
from sslm.system.errors import UserError
from sslm.system.ranks import under_srun, under_torchrun


def check_strategy(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    """Refuse a launch that can't run, before any process is started.

    Raises:
        UserError: it says what can't, and what to type instead.
    """
    name, world, traits = launch.strategy, launch.world, launch.traits
    if traits.is_single and world > 1:
        raise UserError(
            f"--strategy {name}: runs on one device, got {world}; give --strategy ddp or fsdp, or --devices 1"
        )
    if traits.zero_stage:
        _check_deepspeed(config, launch)
    if launch.precision == "16-mixed" and not traits.scales_losses:
        raise UserError(
            f"--precision 16-mixed: has no loss scaling under --strategy {name}; give --precision bf16-mixed"
        )
    if launch.precision == "fp8":
        _check_float8(launch, model)
    if traits.shards_weights and not blocks(model):
        raise UserError(
            f"--strategy {name}: {model.config.model_type}'s layers can't be told apart; give --strategy ddp"
        )
    if traits.replicates_shards and (launch.replicas == 1 or world % launch.replicas):
        divisor = f"give --fsdp.replicas a divisor of {world} above 1, or " if world > 1 else "give "
        raise UserError(f"--strategy {name}: {launch.replicas} replicas of {world} devices; {divisor}--strategy fsdp")
    if traits.tensor_parallel:
        _check_tensor_parallel(config, launch, model)
    elif config.tensor_parallel_size is not None:
        raise UserError(
            f"--tensor_parallel_size {config.tensor_parallel_size}: belongs to --strategy tp and fsdp_tp, "
            f"this is {name}"
        )


def _check_tensor_parallel(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    size, world, takes_all = launch.tensor_parallel_size, launch.world, launch.traits.tensor_parallel == "all"
    if world % size or (takes_all and size != world):
        which = f"{world}, or --strategy fsdp_tp" if takes_all else "a divisor of that"
        raise UserError(f"--tensor_parallel_size {size}: does not fit {world} devices; give {which}")
    check_tensor_parallel(model, size)
    if config.compile and size > 1:
        raise UserError(f"--compile: not under --strategy {launch.strategy}; leave it out, or give --strategy fsdp")


def _check_float8(launch: Launch, model: PreTrainedModel) -> None:
    if launch.traits.tensor_parallel:
        raise UserError(
            f"--precision fp8: not under --strategy {launch.strategy}; give --strategy fsdp, or --precision bf16-mixed"
        )
    if not any(suits_float8(module) for block in blocks(model) for module in block.modules()):
        raise UserError(
            f"--precision fp8: {model.config.model_type} has no linear layers in its blocks whose sides are multiples "
            "of 16; give --precision bf16-mixed"
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
    if config.deepspeed.offload_parameters and launch.traits.zero_stage < 3:
        raise UserError(
            f"--deepspeed.offload_parameters: {name} keeps all weights on each device; give --strategy deepspeed_3"
        )
    if config.deepspeed.config is not None:
        from sslm.parallel.deepspeed import settings  # takes Lightning's strategy, which not every run needs

        settings(config, launch)


def without_effect(config: Config, strategy: str) -> list[str]:
    """Return the flags that were given and that this strategy does not know."""
    traits, defaults = STRATEGIES[strategy], Config()
    foreign = [*(["fsdp"] if not traits.shards_weights else []), *(["deepspeed"] if not traits.zero_stage else [])]
    flags = [
        f"--{section}.{field.name}"
        for section in foreign
        for field in fields(getattr(config, section))
        if getattr(getattr(config, section), field.name) != getattr(getattr(defaults, section), field.name)
    ]
    has_replicas = config.fsdp.replicas is not None and traits.shards_weights and not traits.replicates_shards
    return [*flags, *(["--fsdp.replicas"] if has_replicas else [])]


def strategy_and_precision(config: Config, launch: Launch) -> tuple[Strategy, Precision]:
    """Build Lightning's strategy, and its plugin for the precision.

    Weights in bf16 and fp8 matmuls are not Lightning's business: `parallelize` makes them.
    """
    kind, traits, precision = launch.device_type, launch.traits, launch.precision
    if traits.zero_stage:
        from sslm.parallel import deepspeed  # an optional package

        return deepspeed.strategy_and_precision(config, launch)
    plugin = Precision()
    if launch.autocasts_to_bf16 or precision == "16-mixed":
        plugin = MixedPrecision("16-mixed" if precision == "16-mixed" else "bf16-mixed", device=kind)
    if traits.is_single:
        return SingleDeviceStrategy(device="cuda:0" if kind == "cuda" else "cpu"), plugin
    backend, timeout = "nccl" if kind == "cuda" else "gloo", timedelta(seconds=config.start_timeout_seconds)
    if not (traits.shards_weights or traits.tensor_parallel):
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
    """Average a bucket of gradients in fp32 (a communication hook of DDP)."""
    gradient = bucket.buffer()
    wide = gradient.float() / dist.get_world_size()
    summed: Any = dist.all_reduce(wide, async_op=True).get_future()
    mean: torch.futures.Future[Tensor] = summed.then(lambda done: gradient.copy_(done.value()[0]))
    return mean


def trainer_settings(config: Config, launch: Launch) -> dict[str, Any]:
    """Return the Trainer's accelerator, devices, num_nodes, strategy and plugins (precision, cluster)."""
    strategy, precision = strategy_and_precision(config, launch)
    return {
        "accelerator": launch.accelerator,
        "devices": launch.devices,
        "num_nodes": launch.num_nodes,
        "strategy": strategy,
        "plugins": [precision, *_cluster()],
    }


def _cluster() -> list[Any]:
    """Return the plugin that says which rank this is; none if Lightning sees it by itself."""
    if under_torchrun() or "SLURM_NTASKS" not in os.environ:
        return []
    return [Slurm() if under_srun() else LightningEnvironment()]
