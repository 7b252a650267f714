"""Devices that share matrices and places of rows have the losses, logits and gradients of one process, in fp64."""

from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Gemma2Config, GPTNeoXConfig, LlamaConfig, Phi3Config, PreTrainedConfig, Qwen3Config

from sslm.models.build import build
from sslm.models.task import network_for
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import Recompute
from sslm.parallel.sequence_parallel import suits_places
from sslm.training.simulation import fake_ranks
from tests.support.processes import run_ranks

SIDES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
GROUPED = {**SIDES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
MESH = ("data_parallel", "tensor_parallel")
NEOX = GPTNeoXConfig(**SIDES, num_attention_heads=4)


def compare(rank: int, world: int, config: PreTrainedConfig, length: int, kind: str, tolerance: float) -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(1, 100, (2, 2, length)).unbind()
    found = []
    for is_shared in (False, True):
        model = build(config, "AutoModelForCausalLM", 0).double().train()
        with torch.no_grad():
            for weight in model.parameters():  # biases are zeros
                weight += 0.05 * torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype).view_as(weight)
        network = network_for(model)
        if is_shared:
            mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=MESH)
            parallelize(network, model, mesh, shares_places=True, recomputation=Recompute(kind))  # type: ignore[arg-type]
        seen: list[torch.Size] = []
        model.get_submodule(next(n for n, _ in model.named_modules() if n.endswith("1.mlp"))).register_forward_hook(
            lambda module, arguments, output, seen=seen: seen.append(output.shape)
        )
        losses = network(input_ids=ids, labels=labels)
        losses.sum().backward()
        gradients = [weight.grad for weight in model.parameters()]
        wholes = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
        assert seen[0][1] == (-(-length // world) if is_shared else length)
        with torch.no_grad():
            found.append((losses, network(input_ids=ids), wholes))
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("config", "length", "kind", "tolerance"),
    [
        (NEOX, 13, "none", 1e-9),  # the second rank has a place less
        pytest.param(NEOX, 12, "full", 1e-9, marks=pytest.mark.slow),
        pytest.param(Qwen3Config(**GROUPED), 1, "selective", 1e-6, marks=pytest.mark.slow),  # its norms are in fp32
        pytest.param(Gemma2Config(**GROUPED), 12, "none", 1e-6, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_several_ranks_have_the_losses_and_gradients_of_one(
    config: PreTrainedConfig, length: int, kind: str, tolerance: float, tmp_path: Path
) -> None:
    run_ranks(compare, 2, tmp_path, config, length, kind, tolerance)


@pytest.mark.parametrize(
    ("config", "suits"),
    [
        (NEOX, True),
        (LlamaConfig(**GROUPED), True),
        (GPTNeoXConfig(**SIDES, num_attention_heads=4, hidden_dropout=0.1), False),  # ranks would drop the same places
        (Phi3Config(**GROUPED), False),  # its plan gathers queries, keys and values
    ],
    ids=["gpt_neox", "llama", "dropout", "phi3"],
)
def test_blocks_suit_if_what_is_between_matrices_treats_each_place_for_itself(
    config: PreTrainedConfig, suits: bool
) -> None:
    assert suits_places(config) == suits


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # as it does
@pytest.mark.parametrize("shares_places", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_blocks_give_all_weights_their_gradients(
    shares_places: bool, one_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    with fake_ranks(2):
        model = build(LlamaConfig(**GROUPED), "AutoModelForCausalLM", 0)
        network, mesh = network_for(model), init_device_mesh("cpu", (1, 2), mesh_dim_names=MESH)
        parallelize(network, model, mesh, shares_places=shares_places, compiled="block")
        ids = torch.arange(24).view(2, 12)
        network(input_ids=ids, labels=ids).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
