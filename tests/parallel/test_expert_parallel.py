"""Devices that share experts: outputs and gradients are those of one process, in fp64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import GptOssConfig, MixtralConfig, PreTrainedConfig

from sslm.models.build import build
from sslm.parallel.expert_parallel import experts_of, share_experts
from tests.support.processes import run_ranks

SIDES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
}
MIXTRAL = MixtralConfig(**SIDES)
GPT_OSS = GptOssConfig(**SIDES)
"""With biases, and matrices the other way round."""


def compare(rank: int, world: int, config: PreTrainedConfig, size: int, replicas: int, busy: int) -> None:
    """Tokens of each rank, of which `busy` experts are chosen; the mean over ranks of a sum is what is trained."""
    model = build(config, "AutoModelForCausalLM", 0).double()
    model.set_experts_implementation("eager")  # grouped matmuls know no fp64
    experts = experts_of(model)[0]
    torch.manual_seed(0)
    hidden, weights = torch.randn(world, 6, 16, dtype=torch.float64), torch.rand(world, 6, 2, dtype=torch.float64)
    chosen = torch.rand(world, 6, busy).topk(2).indices
    target = torch.randn(world, 6, 16, dtype=torch.float64)
    found: list[list[Any]] = []
    for is_shared in (False, True):
        inputs = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        if is_shared:
            mesh = init_device_mesh("cpu", (world,))
            share_experts(model, mesh, size, replicas, reshard_after_forward=True, mp_policy=MixedPrecisionPolicy())
        outputs = [experts(inputs[0][r], chosen[r], inputs[1][r]) for r in ([rank] if is_shared else range(world))]
        losses = [(o * t).square().sum() for o, t in zip(outputs, target[rank:] if is_shared else target, strict=False)]
        (sum(losses) if is_shared else sum(losses) / world).backward()  # type: ignore[union-attr]
        mine = [(x.grad if is_shared else x.grad * world)[rank] for x in inputs if x.grad is not None]
        gradients: list[Any] = [weight.grad for weight in experts.parameters()]
        whole = [g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in gradients]
        found.append([outputs[0 if is_shared else rank], *mine, *whole])
        model.zero_grad()
    assert dist.get_world_size() // size * size == world
    assert all(len(weight.to_local()) == 8 // size for weight in experts.parameters())
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("config", "world", "size", "replicas", "busy"),
    [(MIXTRAL, 2, 2, 1, 8), (GPT_OSS, 4, 2, 1, 3), (MIXTRAL, 4, 2, 2, 8)],
    ids=["each_once", "each_twice_and_most_idle", "replicas"],
)
def test_several_ranks_have_the_outputs_and_gradients_of_one(
    config: PreTrainedConfig, world: int, size: int, replicas: int, busy: int, tmp_path: Path
) -> None:
    run_ranks(compare, world, tmp_path, config, size, replicas, busy)
