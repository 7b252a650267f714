"""GPTQ: the numbers of its definition, less error than rounding to the nearest, and what is pruned stays pruned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.models.compression.gptq import DAMPING, gptq, rounded_in_order
from sslm.models.compression.packed import dequantized, rounded
from sslm.models.compression.plain import load
from sslm.models.compression.quantize import Quantization, quantize
from sslm.system.errors import UserError
from tests.support.trained import byte_level, save_model

INPUTS, OUTPUTS, GROUP = 144, 8, 8
"""More inputs than are corrected at once."""


def one_by_one(weight: Tensor, steps: Tensor, products: Tensor) -> Tensor:
    """Optimal brain quantization with the whole inverse (equations 2 and 3), in GPTQ's order, in fp64."""
    weight, inverse = weight.double().clone(), products.double()
    inverse = (inverse + DAMPING * inverse.diagonal().mean() * torch.eye(INPUTS)).inverse()
    numbers = torch.zeros_like(weight)
    for at in products.diagonal().argsort(descending=True).tolist():
        is_zero = weight[:, at] == 0
        numbers[:, at] = (weight[:, at] / steps[:, at]).round().clamp(-8, 7).masked_fill(is_zero, 0)
        error = (weight[:, at] - numbers[:, at] * steps[:, at]) / inverse[at, at]
        weight -= error[:, None] * inverse[at]
        inverse = inverse - torch.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return numbers


def tokens(number: int = 400) -> Tensor:
    """[tokens, inputs] some of which go together."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(number, 24, generator=generator) @ torch.randn(24, INPUTS, generator=generator)
    return hidden + torch.randn(number, INPUTS, generator=generator)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(INPUTS, OUTPUTS), Conv1D(OUTPUTS, INPUTS)]


def test_numbers_are_those_of_the_definition() -> None:
    weight, read = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)), tokens()
    steps = rounded(weight, 4, GROUP)[1].repeat_interleave(GROUP, 1)
    numbers = rounded_in_order(weight, steps, read.T @ read, 4)
    assert torch.equal(numbers.double(), one_by_one(weight, steps, read.T @ read))
    assert (numbers.min(), numbers.max()) == (-8, 7)


@pytest.mark.parametrize("layer", layers(), ids=["Linear", "Conv1D"])
@torch.no_grad()
def test_outputs_change_less_than_by_rounding_to_the_nearest(layer: Any) -> None:
    read, before = tokens(), layer(tokens())
    nearest, scales = rounded(layer.weight, 4, GROUP)
    errors = []
    for numbers in (nearest, gptq(layer, scales, read.T @ read, 4)):
        layer.weight.copy_(dequantized(numbers, scales))
        errors.append(float((layer(read) - before).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_what_is_0_stays_0_and_without_tokens_all_is_rounded_to_the_nearest() -> None:
    weight, read = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)), tokens()
    weight[:, ::2] = 0
    nearest, scales = rounded(weight, 4, GROUP)
    steps = scales.repeat_interleave(GROUP, 1)
    numbers = rounded_in_order(weight, steps, read.T @ read, 4)
    assert not numbers[:, ::2].any()
    assert not torch.equal(numbers, nearest)
    unread = rounded_in_order(weight, steps, torch.zeros(INPUTS, INPUTS), 4)
    assert ((unread * steps - weight).abs() <= 0.5001 * steps).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    """A Llama that has learned to count, and what it learned from."""
    folder = save_model(tmp_path_factory.mktemp("gptq"), "llama", byte_level("the cat"))
    model = load(folder)
    starts, strides = torch.arange(64)[:, None], torch.arange(64)[:, None] % 5 + 1
    ids = (starts + strides * torch.arange(16)) % 64
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder, [{"input_ids": rows} for rows in ids.split(16)]


@torch.no_grad()
def loss(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> float:
    return sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in batches)


def test_a_trained_model_loses_less_and_loads_as_it_was_made(
    trained: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path
) -> None:
    folder, batches = trained
    losses = {"none": loss(load(folder), batches)}
    for method in ("int4", "int4-gptq"):
        (out := tmp_path / method).mkdir()
        made = quantize(folder, out, Quantization(method, 8), batches)
        losses[method] = loss(load(out), batches)
        assert losses[method] == loss(made, batches)
    assert losses["none"] < losses["int4-gptq"] < losses["int4"]
    first, second = (tmp_path / method / "model.safetensors" for method in ("int4", "int4-gptq"))
    assert first.stat().st_size == second.stat().st_size


def test_layers_that_read_no_numbers_are_refused(trained: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path) -> None:
    model = load(trained[0])
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"q_proj reads .* is no finite number; give int4"):
        quantize(tmp_path, tmp_path / "out", Quantization("int4-gptq", 16), trained[1])
