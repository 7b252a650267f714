"""The estimate of activations that can't be measured."""

import pytest
from transformers import LlamaConfig

from sslm.models.build import on_meta
from sslm.parallel.planning.activation_formula import by_formula
from sslm.parallel.planning.activation_memory import measure
from tests.support.families import CAUSAL, SHAPES, VOCABULARY


def test_the_formula_for_what_cannot_be_measured_agrees_with_a_measured_llama() -> None:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, vocab_size=VOCABULARY
    )
    model = on_meta(config, CAUSAL)
    measured, formula = measure(model, SHAPES, on_gpu=True), by_formula(model, SHAPES, bytes_per_number=4)
    assert formula.of(8).inside == pytest.approx(measured.of(8).inside, rel=0.3)
