"""What runs in the forked processes: `sslm train`, with an eye on what the host and the device do."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from sslm.train import main

MATMULS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"}


def train(arguments: list[str]) -> int:
    return main(arguments)


def train_as_task(arguments: list[str]) -> int:
    """Train as a task of srun --gpus-per-task=1, which sees one GPU."""
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    task = {"PROCID": rank, "LOCALID": rank, "NODEID": "0", "NTASKS": world, "NNODES": "1", "GPUS_ON_NODE": world}
    job = {"JOB_ID": "7", "JOB_NAME": "sslm", "STEP_ID": "0", "NODELIST": "node1"}
    os.environ |= {f"SLURM_{name}": value for name, value in (task | job).items()} | {"FAKE_GPUS": "1"}
    return main(arguments)


def train_with_dtypes(out: str, arguments: list[str]) -> int:
    """Train, and write down which dtypes the matmuls of the blocks' linear layers see in training: {dtype: count}."""
    seen = Matmuls()
    with seen:
        code = main(arguments)
    Path(out).write_text(json.dumps(seen.dtypes))
    return code


class Matmuls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the dtypes of matmuls inside blocks that are in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()
        self.depth = 0
        nn.modules.module.register_module_forward_pre_hook(self._enter)
        nn.modules.module.register_module_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.depth += is_training_block(module)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        self.depth -= is_training_block(module)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.depth and function._schema.name.removeprefix("aten::") in MATMULS:
            [dtype] = {value.dtype for value in args[-2:] if isinstance(value, torch.Tensor)} or {args[1].dtype}
            self.dtypes[str(dtype).removeprefix("torch.")] += 1
        return function(*args, **(kwargs or {}))


def is_training_block(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.training
