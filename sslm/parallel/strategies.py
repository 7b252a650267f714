"""A launch as Lightning's classes: strategy, precision plugin, cluster environment."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslm.config import Config
from sslm.parallel.launch import Launch, have_own_gpus
from sslm.parallel.launchers import Slurm
from sslm.system.ranks import under_srun, under_torchrun


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
    if not traits.has_mesh:
        return Replicated(
            process_group_backend=backend, timeout=timeout, broadcast_buffers=False, gradient_as_bucket_view=True
        ), plugin
    return ModelParallelStrategy(
        data_parallel_size=launch.data_parallel_size,
        tensor_parallel_size=launch.world // launch.data_parallel_size,  # of those that have the same rows
        process_group_backend=backend,
        timeout=timeout,
    ), plugin


class Replicated(DDPStrategy):
    """DDP that sums gradients in fp32, whatever the weights are in."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Ranks that share a batch: all processes; Lightning counts the GPUs that each sees, which may be one."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """Wrap the model on the stream that it trains on; see docs/lessons.md, "DDP is built on another stream"."""
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

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
    own_gpus = launch.accelerator == "gpu" and have_own_gpus(launch.devices)
    return {
        "accelerator": launch.accelerator,
        "devices": 1 if own_gpus else launch.devices,
        "num_nodes": launch.num_nodes,
        "strategy": strategy,
        "plugins": [precision, *_cluster(own_gpus)],
    }


def _cluster(own_gpus: bool) -> list[Any]:
    """Return the plugin that says which rank this is; none if Lightning sees it by itself."""
    if under_torchrun() or "SLURM_NTASKS" not in os.environ:
        return []
    return [Slurm(own_gpus) if under_srun() else LightningEnvironment()]
