"""What kernels of GPUs keep, attention's above all."""

import pytest
from transformers import LlamaConfig

from sslm.models.build import on_meta
from sslm.parallel.planning.activation_memory import measure
from tests.support.families import BLOCKS, CAUSAL, FAMILIES, SHAPES, VOCABULARY, everything


def test_a_fused_kernel_keeps_no_matrix_of_attention_and_an_eager_one_does() -> None:
    def kept(implementation: str, length: int, groups: int = 1) -> float:
        model = on_meta(LlamaConfig(**BLOCKS, vocab_size=VOCABULARY, num_key_value_heads=4 // groups), CAUSAL)
        model.set_attn_implementation(implementation)
        shapes = {"input_ids": (length,), "labels": (length,)}
        return everything(measure(model, shapes, on_gpu=True).one)

    assert kept("sdpa", 1024) == pytest.approx(4 * kept("sdpa", 256), rel=0.01)
    matrices = 0.95 * 2 * 4 * 1024 * 1024 * 4  # layers, heads, its two sides, fp32
    assert kept("eager", 1024) - kept("sdpa", 1024) > matrices
    assert kept("sdpa", 1024, groups=2) - kept("sdpa", 1024) > matrices  # in fp32 no fused kernel groups queries


def test_on_gpus_attention_with_dropout_and_learned_biases_is_fused_too() -> None:
    for family in ("bert", "t5"):
        config, auto_class = FAMILIES[family]
        cpu, gpu = (measure(on_meta(config, auto_class), SHAPES, on_gpu=on_gpu).one for on_gpu in (False, True))
        assert gpu.inside < 0.6 * cpu.inside
