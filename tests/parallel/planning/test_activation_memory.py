"""Activations measured on tensors without contents are those of real forward passes."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sslm.models.build import build, on_meta
from sslm.models.head import LanguageModel
from sslm.parallel.planning.activation_memory import measure
from sslm.parallel.planning.forward_record import LSTM_RESERVE
from tests.support.families import CAUSAL, FAMILIES, LENGTH, LLAMA, SHAPES, everything


def saved_by_a_real_forward_pass(
    config: PreTrainedConfig, auto_class: str, rows: int, dtype: torch.dtype | None
) -> int:
    network = LanguageModel(build(config, auto_class, 0).train())
    weights = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.ones(rows, LENGTH, dtype=torch.long)
    with (
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        network(input_ids=ids, labels=ids)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_without_contents_are_those_of_a_real_forward_pass(family: str, dtype: torch.dtype | None) -> None:
    config, auto_class = FAMILIES[family]
    measured = measure(on_meta(config, auto_class), SHAPES, on_gpu=False, autocast=dtype)
    real = saved_by_a_real_forward_pass(config, auto_class, 3, dtype)
    # whether there is a fused LSTM in bf16, with its buffer, depends on the CPU: it is planned for on all
    buffer = LSTM_RESERVE * 3 * LENGTH * 2 * 64 if family == "lstm" and dtype else 0
    assert everything(measured.of(3)) <= 1.04 * real + buffer
    assert everything(measured.of(3)) >= 0.98 * real


def test_devices_that_share_matrices_keep_a_part_of_what_comes_up_between_them() -> None:
    model = on_meta(LLAMA, CAUSAL)
    whole, half = (measure(model, SHAPES, on_gpu=True, tensor_parallel=size).one for size in (1, 2))
    assert half.head == whole.head
    assert half.inputs == whole.inputs
    assert 0.4 * whole.inside < half.inside < 0.8 * whole.inside


def test_devices_that_share_places_keep_a_part_of_what_is_between_matrices() -> None:
    model = on_meta(LLAMA, CAUSAL)
    whole, part = (
        measure(model, SHAPES, on_gpu=True, tensor_parallel=2, shares_places=shares).one for shares in (False, True)
    )
    assert part.head == whole.head
    assert 0.5 * whole.inputs < part.inputs < 0.7 * whole.inputs  # rotary angles are whole
    assert 0.8 * whole.inside < part.inside < 0.9 * whole.inside  # as are what attention and feed-forward layers get
