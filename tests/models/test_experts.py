"""Mixtures of experts compute in the precision that is asked for."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MixtralConfig

from sslm.models.build import build
from sslm.models.head import LanguageModel

GROUPED = torch.ops.aten._grouped_mm.default


class Grouped(TorchDispatchMode):
    """Counts the dtypes of grouped matmuls' factors."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is GROUPED:
            self.dtypes.update(factor.dtype for factor in args[:2])
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def network() -> LanguageModel:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return LanguageModel(build(config, "AutoModelForCausalLM", 0))


def gradients(network: LanguageModel, dtype: torch.dtype) -> tuple[Tensor, Counter[torch.dtype]]:
    ids = torch.arange(16).view(2, 8)
    network.zero_grad()
    with Grouped() as seen:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = network(input_ids=ids, labels=ids).mean()
        loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]), seen.dtypes


def test_experts_are_multiplied_in_autocasts_dtype(network: LanguageModel) -> None:
    exact, in_fp32 = gradients(network, torch.float32)
    cast, in_bf16 = gradients(network, torch.bfloat16)
    assert set(in_fp32) == {torch.float32}
    assert set(in_bf16) == {torch.bfloat16}
    assert cast.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(cast, exact, dim=0) > 0.99
